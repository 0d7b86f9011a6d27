"""Run a whole cluster on this machine (a Ray head and nodes, an S3 server and MLflow), and submit a job to it.

  python -m infra.deploy.local.cluster -- python workflows/train_pipeline.py --workspace s3://deconvnet/run
  python -m infra.deploy.local.cluster      without a job: it runs until Ctrl-C, for looking around and submitting jobs

Every node is started by a separate `ray start`, with its own address (127.0.0.2, …) and its own Ray label `pool`. So a node can
be killed as if its machine died. Everything is stopped at the end, also after Ctrl-C and SIGTERM. This works on Linux only.
"""

import argparse
import logging
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import requests

from infra.deploy.local.process import Server, bypass_proxies, find_program, free_port, free_ports, write_private
from infra.deploy.local.servers import S3, mlflow_server, postgres_programs, postgres_server, s3_server
from infra.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
BUCKET = "deconvnet"
OBJECT_STORE_MB = 256
JOB_STOP_SECONDS = 120
"""How many seconds `ray job stop` gives a job to write a checkpoint before it kills the job."""

logger = logging.getLogger(__name__)


@dataclass
class Node:
    """A Ray node on this machine, started by its own `ray start`. It stands for one machine of a real cluster.

    Attributes:
        address: IP address of the node.
        server: the node's main process, `ray start`.
    """

    address: str
    server: Server

    def processes(self, title: str = "") -> list[Any]:
        """Return the node's running processes as `psutil.Process` objects.

        Args:
            title: a text. Only processes whose command line contains it are returned. "" for all processes.
        """
        import ray  # noqa: F401  adds the psutil that comes with Ray to the path
        from psutil import Error, Process

        if self.server.process is None:
            return []
        found = []
        with suppress(Error):
            main = Process(self.server.process.pid)
            for process in [main, *main.children(recursive=True)]:
                with suppress(Error):
                    if title in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def kill(self) -> None:
        """Kill all processes of the node by SIGKILL, as if its power failed. Do nothing if they have already ended."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.server.kill()


@dataclass
class Cluster:
    """A Ray cluster on this machine: a head node and the other nodes.

    Attributes:
        address: address of the head (IP:port), for `ray.init` and `ray start --address`.
        dashboard: URL of Ray's dashboard, which also accepts jobs.
        environment: all environment variables of the nodes. Commands that use the cluster need them too.
        temporary: folder for logs and Ray's files.
        nodes: all nodes that were started. The head is the first.
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    temporary: Path
    nodes: list[Node] = field(default_factory=list)
    # Yields the last number of each new node's address, from 2 on: Ray replaces 127.0.0.1 by the machine's own address.
    _numbers: Iterator[int] = field(default_factory=lambda: count(2), repr=False)

    @property
    def head(self) -> Node:
        """Return the head node."""
        return self.nodes[0]

    def start_head(self, cpus: int) -> None:
        """Start the head node, on which Ray may use `cpus` CPUs, and wait until it accepts jobs.

        Raises:
            UserError: if it does not start.
        """
        port, dashboard = self.address.rpartition(":")[2], self.dashboard.rpartition(":")[2]
        arguments = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        head = self._node("head", cpus, [*arguments, f"--temp-dir={self.temporary}", f"--ray-client-server-port={free_port()}"])
        self.nodes.append(head)
        head.server.ready = self._accepts_jobs
        head.server.start()

    def add_node(self, pool: str = "cpu", cpus: int = 1) -> Node:
        """Start another node and wait until it has joined the cluster.

        Args:
            pool: value of the node's Ray label `pool`.
            cpus: number of CPUs that Ray may use on it.

        Returns:
            The node. It is also appended to `nodes`.

        Raises:
            UserError: if it does not start.
        """
        node = self._node(pool, cpus, [f"--address={self.address}"])
        self.nodes.append(node)
        node.server.ready = lambda: node.address in self.alive()
        try:
            node.server.start()
        except UserError:  # Ray gives up after 30 s, which may be too short on a busy machine
            node.server.start()
        return node

    def alive(self) -> list[str]:
        """Return the IP addresses of the nodes that are alive according to the head; [] if the head does not answer."""
        with suppress(OSError):
            found = self._request("/api/v0/nodes")["data"]["result"]["result"]
            return [node["node_ip"] for node in found if node["state"] == "ALIVE"]
        return []

    def ray(self, *arguments: str) -> list[str]:
        """Return a command line that calls `ray` with these arguments. Run it with the environment variables in `environment`."""
        return [find_program("ray", "'ray[default]'"), *arguments]

    def _node(self, pool: str, cpus: int, arguments: Sequence[str]) -> Node:
        """Create a node without starting it.

        Args:
            pool: value of the node's Ray label `pool`.
            cpus: number of CPUs that Ray may use on it.
            arguments: further arguments of `ray start`.
        """
        number = next(self._numbers)
        address = f"127.0.0.{number}"
        agents = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
        options = {
            "node-ip-address": address,
            "num-cpus": cpus,
            "labels": f"pool={pool}",
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": OBJECT_STORE_MB * 2**20,
            **dict(zip(agents, free_ports(len(agents)), strict=True)),
        }
        flags = ["--block", "--disable-usage-stats", *(f"--{name}={value}" for name, value in options.items())]
        command, log = self.ray("start", *flags, *arguments), self.temporary / f"node-{number}.log"
        server = Server(f"Ray's node {address}", self.address, command, self.environment, log, lambda: False, folder=ROOT)
        return Node(address, server)

    def _accepts_jobs(self) -> bool:
        """Submit a test job, wait for its end and return whether it succeeded.

        An answer of Ray's dashboard alone is not enough, because it answers before the process that runs jobs is ready.
        """
        with suppress(OSError, KeyError):
            job = self._request("/api/jobs/", {"entrypoint": "true"})["submission_id"]
            while (status := self._request(f"/api/jobs/{job}")["status"]) in ("PENDING", "RUNNING"):
                time.sleep(0.2)
            return bool(status == "SUCCEEDED")
        return False

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request to the HTTP API of Ray's dashboard and return its JSON answer.

        Args:
            path: path of the request, such as "/api/jobs/".
            body: JSON object to send by POST; None to use GET.
        """
        headers = {"Authorization": f"Bearer {Path(self.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        method = "GET" if body is None else "POST"
        reply = requests.request(method, self.dashboard + path, json=body, headers=headers, timeout=30)
        reply.raise_for_status()
        return reply.json()


@contextmanager
def ray_cluster(
    pools: Sequence[str] = ("cpu", "cpu"),
    *,
    cpus: int = 1,
    head_cpus: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Run a Ray cluster on this machine for the duration of a `with` statement. A random token keeps other users out.

    Args:
        pools: value of the Ray label `pool` of each node other than the head.
        cpus: number of CPUs that Ray may use on each of these nodes.
        head_cpus: number of CPUs that Ray may use on the head.
        environment: further environment variables of every process, for example those for S3 and MLflow.

    Yields:
        The cluster, with all nodes running.

    Raises:
        UserError: if a node does not start.
    """
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # in the system's temporary folder: Ray needs short socket paths
    token = temporary / "token"
    write_private(token, secrets.token_hex(32))
    port, dashboard = free_ports(2)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "TMPDIR": str(temporary),  # killed processes leave files there, which are deleted at the end
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_SECONDS),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        **(environment or {}),
    }
    cluster = Cluster(f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard}", variables, temporary)
    try:
        cluster.start_head(head_cpus)
        for pool in pools:
            cluster.add_node(pool, cpus)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            node.kill()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def tracking_server(folder: Path, s3: S3) -> Iterator[Server]:
    """Run an MLflow server for the duration of a `with` statement.

    It stores artifacts on S3, and everything else in PostgreSQL, or in SQLite if PostgreSQL can't be started.

    Args:
        folder: folder for the server's log and for the file of SQLite.
        s3: the S3 server. The bucket `mlflow` for the artifacts is created there.

    Yields:
        The running MLflow server.
    """
    with ExitStack() as stack:
        store = None
        if postgres_programs() and find_spec("psycopg2"):
            try:
                store = stack.enter_context(postgres_server())
            except UserError as error:
                logger.info("MLflow uses SQLite, since PostgreSQL does not start: %s", error)
        else:
            logger.info("MLflow uses SQLite, since PostgreSQL or psycopg2 is not installed")
        artifacts = f"{s3.create_bucket('mlflow')}/artifacts"
        yield stack.enter_context(mlflow_server(folder, store=store, artifacts=artifacts, environment=s3.environment))


def main(argv: Sequence[str] | None = None) -> int:
    """Start the servers and the cluster, run a job on it, and stop everything. This is the command of the module.

    Args:
        argv: command-line arguments; None for those of this process.

    Returns:
        The exit code of the command: 2 for a UserError, 130 after Ctrl-C or SIGTERM, otherwise the exit code of the job.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", default="cpu,cpu", help="the nodes' pools (default: cpu,cpu)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each node as Ray counts them (default: 1)")
    parser.add_argument("--stay", action="store_true", help="keep running after the job has ended, until Ctrl-C")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help=f"the job; it can use the bucket s3://{BUCKET}")
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            return _run(arguments, stack)
        except UserError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        finally:
            logger.info("stopping the cluster and its servers")


def _run(arguments: argparse.Namespace, stack: ExitStack) -> int:
    """Start the servers and the cluster, run the job if one is given, and wait for Ctrl-C if there is none or with --stay.

    Args:
        arguments: the parsed command-line arguments.
        stack: the ExitStack on which the servers and the cluster are entered. Its `close` stops them.

    Returns:
        The exit code of the job; 0 without a job.
    """
    bypass_proxies()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deconvnet-cluster-")))
    logger.info("starting S3")
    s3 = stack.enter_context(s3_server(folder / "s3"))
    s3.create_bucket(BUCKET)
    logger.info("starting MLflow")
    mlflow = stack.enter_context(tracking_server(folder / "mlflow", s3))
    logger.info("starting Ray")
    pools = [pool for pool in arguments.pools.split(",") if pool]
    environment = {**s3.environment, "MLFLOW_TRACKING_URI": mlflow.url}
    cluster = stack.enter_context(ray_cluster(pools, cpus=arguments.cpus, environment=environment))
    for_terminal = {k: v for k, v in cluster.environment.items() if k.startswith(("RAY_", "AWS_", "MLFLOW_"))}
    script = folder / "environment.sh"
    write_private(script, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in for_terminal.items()))
    logger.info(
        f"\nMLflow          {mlflow.url}"
        f"\nRay's dashboard {cluster.dashboard}   (its token is in {cluster.environment['RAY_AUTH_TOKEN_PATH']})"
        f"\nS3              {s3.url}, bucket s3://{BUCKET}"
        f"\nnodes           head, {', '.join(pools)}"
        f"\nin a terminal   source {script}\n"
    )
    code = 0
    if arguments.command:
        submit = cluster.ray("job", "submit", "--", *arguments.command)
        code = subprocess.run(submit, env=cluster.environment, cwd=ROOT, check=False).returncode
    if arguments.stay or not arguments.command:
        logger.info("Ctrl-C stops everything")
        signal.pause()
    return code


if __name__ == "__main__":
    sys.exit(main())
