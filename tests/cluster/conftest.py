"""The cluster that the tests break: a head and two nodes, S3 and MLflow, started once, and made whole again for every test."""

import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from infra import storage
from infra.deploy.local.cluster import Cluster, ray_cluster
from infra.deploy.local.servers import S3, Server, mlflow_server
from tests.conftest import ROOT
from tests.servers import s3_server

# A dead node is noticed in three seconds instead of fifteen.
SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}


@dataclass
class Driver:
    """A command, and what it has said so far."""

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
    def said(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, seconds: float = 120, after: int = 0) -> int:
        """Wait for a line after the first `after` that matches; its number."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            for number, line in enumerate(self.lines[after:], start=after):
                if re.search(pattern, line):
                    return number
            assert not ended and time.monotonic() < deadline, f"no {pattern!r} in:\n{self.said[-6000:]}"
            time.sleep(0.05)

    def end(self, seconds: float = 240) -> int:
        """Wait for its end; the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended after {seconds:.0f} s:\n{self.said[-6000:]}")
        self._reader.join(10)
        return code


@dataclass
class Lab:
    """A cluster with its S3, and a bucket."""

    cluster: Cluster
    s3: S3
    bucket: str

    def start(self, *arguments: str, **variables: str) -> Driver:
        """Python with `arguments` as a driver on the head."""
        environment = {**self.cluster.environment, "RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(ROOT), **variables}
        return start([sys.executable, "-u", *arguments], environment)

    def submit(self, *arguments: str, **variables: str) -> Driver:
        """Python with `arguments` as a job; `variables` reach all that it starts, on every node."""
        runtime = json.dumps({"env_vars": {"PYTHONUNBUFFERED": "1", **variables}})
        command = self.cluster.ray("job", "submit", "--runtime-env-json", runtime, "--", "python", *arguments)
        return start(command, self.cluster.environment)

    def place(self, name: str) -> str:
        """A place in the bucket that nobody uses."""
        return storage.join(self.bucket, f"{name}-{uuid.uuid4().hex[:8]}")

    def whole(self) -> None:
        """Replace the nodes that are dead."""
        for node in [n for n in self.cluster.nodes if not n.processes()]:
            self.cluster.nodes.remove(node)
        while len(self.cluster.nodes) < 3:
            self.cluster.add_node()
        until(lambda: len(self.cluster.alive()) == 3, "the dead nodes are noticed")


def start(command: list[str], environment: Mapping[str, str]) -> Driver:
    """A command in the project's folder, in a session of its own."""
    return Driver(
        subprocess.Popen(
            command, env=dict(environment), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    )  # fmt: skip


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until `true()`, which is that `what`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server; this process finds it, too."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def started(s3: S3) -> Iterator[Lab]:
    with ray_cluster(environment={**s3.environment, **SOON}) as cluster:
        yield Lab(cluster, s3, s3.bucket("cluster-tests"))


@pytest.fixture
def lab(started: Lab) -> Lab:
    """The cluster, with a head and two living nodes."""
    started.whole()
    return started


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
