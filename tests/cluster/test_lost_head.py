"""The head of the cluster is lost in the middle of a run: the run ends soon, with a message and an exit code."""

import os
import signal
from pathlib import Path

import pytest

from infra.deploy.local.cluster import ray_cluster
from tests.cluster.conftest import FAST_HEALTH_CHECKS, start
from tests.conftest import ROOT
from tests.workflows.commands import TINY, command

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("phase", "loss", "words"),
    [
        (r"\] prepare", "killed", "Ray was lost: its processes on this machine have ended"),
        (r"\] proposals", "killed", "Ray was lost: its processes on this machine have ended"),
        (r"\] stage1", "killed", "Ray was lost: its processes on this machine have ended"),
        (r"\] proposals", "frozen", r"Ray was lost: its head at .* has not answered"),
    ],
)
def test_a_lost_head_ends_a_run_with_a_message_and_code_75(tmp_path: Path, phase: str, loss: str, words: str) -> None:
    with ray_cluster(environment=FAST_HEALTH_CHECKS) as cluster:
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        driver = start(command("--workspace", str(tmp_path / "w"), "--tracking.enabled", "false", *TINY), environment)
        driver.until(phase)
        if loss == "killed":
            cluster.head.kill()
        else:
            for process in cluster.head.processes("gcs_server"):
                os.kill(process.pid, signal.SIGSTOP)
        assert driver.end(120) == 75, driver.output
        driver.until(words)
