"""A stand-in for a whole cluster on this machine: a Ray head and nodes, S3, MLflow, and a job submitted to it.

  python -m infra.deploy.local.cluster -- python workflows/train_pipeline.py --workspace s3://deconvnet/run
  python -m infra.deploy.local.cluster                      no job: it stays until Ctrl-C, for looking around and submitting by hand

Every node is a `ray start` of its own with an address (127.0.0.2, …), resources and a `pool` label of its own, so that one can be
killed as a machine would die. All that was started is stopped at the end, by Ctrl-C and by SIGTERM too. For Linux.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from infra.deploy.local.servers import (
    S3,
    Server,
    free_port,
    free_ports,
    mlflow_server,
    postgres_programs,
    postgres_server,
    program,
    s3_server,
)
from infra.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
BUCKET = "deconvnet"
OBJECT_STORE_MB = 256
JOB_STOP_SECONDS = 120  # what `ray job stop` grants a job to leave a checkpoint


@dataclass
class Node:
    """One `ray start`: what a machine is to a cluster."""

    address: str
    pool: str
    server: Server

    def processes(self, title: str = "") -> list[Any]:
        """The node's processes (of psutil), those whose command line holds `title`."""
        import ray  # noqa: F401  it brings psutil
        from psutil import Error, Process

        if self.server.process is None:
            return []
        found = []
        with suppress(Error):
            first = Process(self.server.process.pid)
            for each in [first, *first.children(recursive=True)]:
                with suppress(Error):
                    if title in " ".join(each.cmdline()):
                        found.append(each)
        return found

    def kill(self) -> None:
        """SIGKILL for all that runs on it, as if its power was cut. Twice does no harm."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.server.kill()


@dataclass
class Cluster:
    """A running head with its nodes. `environment` is what a terminal needs to speak to it, and what every node was started with."""

    address: str
    dashboard: str
    environment: dict[str, str]
    temporary: Path
    nodes: list[Node] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(2), repr=False)  # 127.0.0.1 would become the machine's address

    @property
    def head(self) -> Node:
        """The first node."""
        return self.nodes[0]

    def add_node(self, pool: str = "cpu", cpus: int = 1, resources: Mapping[str, float] | None = None) -> Node:
        """Start another node, wait until the head knows it, and return it."""
        node = self._node(pool, cpus, [f"--address={self.address}", f"--resources={json.dumps(dict(resources or {}))}"])
        self.nodes.append(node)
        node.server.ready = lambda: node.address in self.alive()
        try:
            node.server.start()
        except UserError:  # Ray gives itself 30 s, which a busy machine may need more than once
            node.server.start()
        return node

    def kill_node(self, index: int) -> None:
        """SIGKILL for the whole node (0 is the head)."""
        self.nodes[index].kill()

    def alive(self) -> list[str]:
        """Addresses of the nodes that the head holds alive; none where it doesn't answer."""
        with suppress(OSError):
            found = self._ask("/api/v0/nodes")["data"]["result"]["result"]
            return [node["node_ip"] for node in found if node["state"] == "ALIVE"]
        return []

    def ray(self, *arguments: str) -> list[str]:
        """The command line of `ray` with `arguments`; it wants `environment`."""
        return [program("ray", "'ray[default]'"), *arguments]

    def _start_head(self, cpus: int) -> None:
        port, dashboard = self.address.rpartition(":")[2], self.dashboard.rpartition(":")[2]
        arguments = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        head = self._node("head", cpus, [*arguments, f"--temp-dir={self.temporary}", f"--ray-client-server-port={free_port()}"])
        self.nodes.append(head)
        head.server.ready = self._takes_jobs
        head.server.start()

    def _node(self, pool: str, cpus: int, arguments: Sequence[str]) -> Node:
        number = next(self._numbers)
        address = f"127.0.0.{number}"
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        command = self.ray(
            "start", "--block", f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--labels=pool={pool}", "--disable-usage-stats", "--min-worker-port=0",
            "--max-worker-port=0",            f"--object-store-memory={OBJECT_STORE_MB * 2**20}", *(f"--{name}={port}" for name, port in ports.items()), *arguments,
        )  # fmt: skip
        log = self.temporary / f"node-{number}.log"
        server = Server(f"Ray's node {address}", self.address, command, self.environment, log, lambda: False, folder=ROOT)
        return Node(address, pool, server)

    def _takes_jobs(self) -> bool:
        """True once a job was run: the dashboard answers before the agent that runs jobs is there."""
        with suppress(OSError, KeyError):
            job = self._ask("/api/jobs/", {"entrypoint": "true"})["submission_id"]
            while (status := self._ask(f"/api/jobs/{job}")["status"]) in ("PENDING", "RUNNING"):
                time.sleep(0.2)
            return bool(status == "SUCCEEDED")
        return False

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {Path(self.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.dashboard + path, data, headers), timeout=30) as reply:
            return json.load(reply)


@contextmanager
def ray_cluster(
    pools: Sequence[str] = ("cpu", "cpu"), *, cpus: int = 1, head_cpus: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:  # fmt: skip
    """A head and a node for each of `pools` with `cpus` each, for the time of a block; a token of its own keeps others out.

    environment: more variables of every process on it (S3's, MLflow's). Raises UserError where it does not start.
    """
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # of the system, because Ray's sockets need a short path
    token = temporary / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard = free_ports(2)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "TMPDIR": str(temporary),  # what is killed leaves things there
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_SECONDS),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        **(environment or {}),
    }
    cluster = Cluster(f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard}", variables, temporary)
    try:
        cluster._start_head(head_cpus)
        for pool in pools:
            cluster.add_node(pool, cpus)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            node.kill()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def tracking_server(folder: Path, s3: S3, say: Callable[[str], None] = print) -> Iterator[Server]:
    """MLflow with its artifacts on `s3`, and PostgreSQL below it; where that can't be started, SQLite."""
    with ExitStack() as stack:
        store = None
        if postgres_programs() and find_spec("psycopg2"):
            try:
                store = stack.enter_context(postgres_server())
            except UserError as error:
                say(f"PostgreSQL can't be had, MLflow uses SQLite: {error}")
        else:
            say("PostgreSQL or psycopg2 is not installed: MLflow uses SQLite")
        artifacts = f"{s3.bucket('mlflow')}/artifacts"
        yield stack.enter_context(mlflow_server(folder, store=store, artifacts=artifacts, environment=s3.environment))


def main(argv: Sequence[str] | None = None) -> int:
    """Start everything, run the job, stop everything; returns the job's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", default="cpu,cpu", help="the nodes' pools (default: cpu,cpu)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of a node as Ray counts them (default: 1)")
    parser.add_argument("--stay", action="store_true", help="stay when the job has ended, until Ctrl-C")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help=f"the job; the bucket s3://{BUCKET} is there for it")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with ExitStack() as stack:
        try:
            return _run(arguments, stack)
        except UserError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        finally:
            print("stopping what was started", flush=True)


def _run(arguments: argparse.Namespace, stack: ExitStack) -> int:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deconvnet-cluster-")))
    print("S3 …", flush=True)
    s3 = stack.enter_context(s3_server(folder / "s3"))
    s3.bucket(BUCKET)
    print("MLflow …", flush=True)
    mlflow = stack.enter_context(tracking_server(folder / "mlflow", s3))
    print("Ray …", flush=True)
    pools = [pool for pool in arguments.pools.split(",") if pool]
    environment = {**s3.environment, "MLFLOW_TRACKING_URI": mlflow.url}
    cluster = stack.enter_context(ray_cluster(pools, cpus=arguments.cpus, environment=environment))
    shown = {k: v for k, v in cluster.environment.items() if k.startswith(("RAY_", "AWS_", "MLFLOW_"))}
    terminal = folder / "environment.sh"
    terminal.touch(mode=0o600)
    terminal.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in shown.items()))
    print(
        f"\nMLflow          {mlflow.url}\nRay's dashboard {cluster.dashboard}   (its token: {cluster.environment['RAY_AUTH_TOKEN_PATH']})"
        f"\nS3              {s3.url}, bucket s3://{BUCKET}"
        f"\nnodes           head, {', '.join(pools)}\na terminal      source {terminal}\n",
        flush=True,
    )
    code = 0
    if arguments.command:
        submit = cluster.ray("job", "submit", "--", *arguments.command)
        code = subprocess.run(submit, env=cluster.environment, cwd=ROOT, check=False).returncode
    if arguments.stay or not arguments.command:
        print("Ctrl-C stops it all", flush=True)
        signal.pause()
    return code


if __name__ == "__main__":
    sys.exit(main())
