"""The cluster that the tests break: a head, two nodes, S3 and MLflow, started once; dead nodes are replaced before each test."""

import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from infra import storage
from infra.deploy.local.cluster import Cluster, Node, ray_cluster
from infra.deploy.local.process import Server
from infra.deploy.local.servers import S3, mlflow_server
from tests.conftest import ROOT
from tests.servers import s3_server
from tests.waiting import wait_until

# Ray notices a dead node after 3 seconds instead of 15.
FAST_HEALTH_CHECKS = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}


@dataclass
class Driver:
    """A running command, and the lines that it has printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return "\n".join(self.lines)

    def until(self, pattern: str, seconds: float = 300, after: int = 0) -> int:
        """Wait for a line, after the first `after` ones, that matches a regular expression; returns its index."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            for number, line in enumerate(self.lines[after:], start=after):
                if re.search(pattern, line):
                    return number
            assert not ended and time.monotonic() < deadline, f"no {pattern!r} in:\n{self.output[-6000:]}"
            time.sleep(0.05)

    def end(self, seconds: float = 240) -> int:
        """Wait until the command ends; returns its exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds:.0f} s:\n{self.output[-6000:]}")
        self._reader.join(10)
        return code


@dataclass
class ClusterFixture:
    """A cluster with its S3 server, and the URI of a bucket."""

    local: Cluster
    s3: S3
    bucket: str

    def start(self, *arguments: str, **variables: str) -> Driver:
        """Run Python with these arguments as a driver on the head."""
        environment = {**self.local.environment, "RAY_ADDRESS": self.local.address, "PYTHONPATH": str(ROOT), **variables}
        return start([sys.executable, "-u", *arguments], environment)

    def submit(self, *arguments: str, **variables: str) -> Driver:
        """Submit Python with these arguments as a Ray job; `variables` are set in its processes on every node."""
        runtime = json.dumps({"env_vars": {"PYTHONUNBUFFERED": "1", **variables}})
        command = self.local.ray("job", "submit", "--runtime-env-json", runtime, "--", "python", *arguments)
        return start(command, self.local.environment)

    def drain(self, node: Node, seconds: int) -> float:
        """Tell Ray that a node will be taken away in some seconds; returns when that is. The caller must kill it then."""
        nodes = self.local._request("/api/v0/nodes")["data"]["result"]["result"]
        (name,) = (each["node_id"] for each in nodes if each["node_ip"] == node.address and each["state"] == "ALIVE")
        options = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--node-id", name]
        command = self.local.ray("drain-node", "--address", self.local.address, *options)
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self.local.environment, check=True, capture_output=True, text=True)
        return time.time() + seconds

    def new_uri(self, name: str) -> str:
        """URI of a new folder in the bucket."""
        return storage.join(self.bucket, f"{name}-{uuid.uuid4().hex[:8]}")

    def replace_dead_nodes(self) -> None:
        """Start a new node for each dead one, and wait until the head knows who is alive."""
        for node in [n for n in self.local.nodes if not n.processes()]:
            self.local.nodes.remove(node)
        while len(self.local.nodes) < 3:
            self.local.add_node()
        wait_until(lambda: len(self.local.alive()) == 3, description="the head counts three nodes")


def start(command: list[str], environment: Mapping[str, str]) -> Driver:
    """Start a command in the project's folder, as the leader of a new session."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return Driver(subprocess.Popen(command, env=dict(environment), cwd=ROOT, **pipes, text=True, start_new_session=True))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server, which this process uses as its S3 too."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def started(s3: S3) -> Iterator[ClusterFixture]:
    """The cluster, possibly with dead nodes."""
    with ray_cluster(environment={**s3.environment, **FAST_HEALTH_CHECKS}) as cluster:
        yield ClusterFixture(cluster, s3, s3.create_bucket("cluster-tests"))


@pytest.fixture
def cluster(started: ClusterFixture) -> ClusterFixture:
    """The cluster, with a head and two live nodes."""
    started.replace_dead_nodes()
    return started


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
