"""`make cluster` starts everything, runs the job, and leaves nothing behind."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import Driver, start
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(300)]
SHOW = (
    "import os, ray; ray.init(); print(sorted(n['Labels']['pool'] for n in ray.nodes()), os.environ['MLFLOW_TRACKING_URI'][:7])"
)


def run(folder: Path, *job: str) -> Driver:
    """Start `python -m infra.deploy.local.cluster` with its temporary files in `folder`."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    return start([sys.executable, "-m", "infra.deploy.local.cluster", "--", *job], environment)


def processes_using(folder: Path) -> list[psutil.Process]:
    """The processes with `folder` in their command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in part for part in p.info["cmdline"] or ())]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(f"/tmp/cl{os.getpid()}")  # Ray's sockets need a short path
    made.mkdir()
    made.chmod(0o755)  # PostgreSQL runs as another user
    yield made
    shutil.rmtree(made)


def test_a_job_runs_and_no_process_or_file_is_left(folder: Path) -> None:
    driver = run(folder, "python", "-c", SHOW)
    assert driver.end() == 0, driver.output
    assert "['cpu', 'cpu', 'head'] http://" in driver.output
    assert re.search(r"^MLflow +http://127\.0\.0\.1:\d+$", driver.output, re.MULTILINE)
    assert not processes_using(folder) and not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_cluster_and_no_process_or_file_is_left(folder: Path, number: int) -> None:
    driver = run(folder, "python", "-c", "print(6 * 7, flush=True); import time; time.sleep(500)")
    driver.until("^42$")
    assert len(processes_using(folder)) > 10
    driver.process.send_signal(number)
    assert driver.end(60) == 130, driver.output
    assert "Traceback" not in driver.output
    wait_until(lambda: not processes_using(folder), 20, description="all processes are gone")
    assert not list(folder.iterdir())
