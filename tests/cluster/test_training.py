"""The pipeline on a cluster of three nodes, its workspace on S3, while something dies in stage 2 or all along."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra import storage
from infra.deploy.local.servers import Server, mlflow_server
from tests.cluster.conftest import Driver, Lab
from tests.servers import FlakyProxy
from tests.workflows.test_train_pipeline import TINY

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(900)]
PIPELINE = "workflows/train_pipeline.py"
INTERVAL = 3
BEFORE = ("prepare", "proposals", "examples", "fcn8s", "stage1")
EVERY_STEP = ["--train.stage2.log_every", "1", "--train.stage2.checkpoint_every", str(INTERVAL)]


@pytest.fixture(scope="module")
def base(started: Lab, mlflow: Server) -> str:
    """A workspace that the pipeline has run in to the end: with other settings of stage 2 it begins there."""
    started.whole()
    workspace = started.place("base")
    driver = started.start(PIPELINE, "--workspace", workspace, *TINY, MLFLOW_TRACKING_URI=mlflow.url)
    assert driver.end(400) == 0, driver.said
    return workspace


def stage2(workspace: str, epochs: int) -> list[str]:
    """The command of a stage 2 that was not run before: `epochs` tells it from others."""
    return [PIPELINE, "--workspace", workspace, *TINY, *EVERY_STEP, "--train.stage2.epochs", str(epochs)]


def steps(lines: Sequence[str]) -> list[int]:
    """The numbers of the steps that stage 2 reported a loss of, in order."""
    start = next((i for i, line in enumerate(lines) if "] stage2:" in line), len(lines))
    end = next((i for i, line in enumerate(lines) if "] evaluate:" in line), len(lines))
    found = (re.search(r"step ([\d,]+)/.*loss", line) for line in lines[start:end])
    return [int(m[1].replace(",", "")) for m in found if m]


def reach(driver: Driver, step: int) -> None:
    """Wait until stage 2 has done `step`."""
    deadline = time.monotonic() + 300
    while max(steps(driver.lines), default=0) < step:
        assert driver.process.poll() is None and time.monotonic() < deadline, f"not at step {step}:\n{driver.said[-6000:]}"
        time.sleep(0.05)


def total(driver: Driver) -> int:
    """How many steps stage 2 has."""
    found = re.search(r"at most ([\d,]+) steps", driver.said[driver.said.index("] stage2:") :])
    assert found
    return int(found[1].replace(",", ""))


def delivered(server: Server, epochs: int) -> list[int]:
    """The steps of the loss curve of stage 2 in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("deconvnet")
    found = client.search_runs(
        [experiment.experiment_id], f"tags.stage = 'stage2' and params.`train.epochs` = '{epochs}'", order_by=["start_time"]
    )
    (run,) = found
    assert run.info.status == "FINISHED"
    return [m.step for m in client.get_metric_history(run.info.run_id, "loss")]


def redone(before: Sequence[int], after: Sequence[int]) -> int:
    """How many steps were done a second time."""
    return max(before) - min(after) + 1


def test_a_worker_and_then_its_node_die(lab: Lab, base: str, mlflow: Server) -> None:
    driver = lab.start(*stage2(base, 20), "--compute.workers", "2", "--compute.min_workers", "1", MLFLOW_TRACKING_URI=mlflow.url)
    reach(driver, 8)
    training = [node for node in lab.cluster.nodes if node.processes("RayTrainWorker")]
    assert len(training) == 2
    for kill in (training[0].processes("RayTrainWorker")[0].kill, training[0].kill):
        seen = len(driver.lines)
        kill()
        failed = driver.until("workers failed", after=seen)
        driver.until(r"step \d+/.*loss", after=failed)
        before = steps(driver.lines[:failed])
        assert redone(before, steps(driver.lines)[len(before) :]) <= INTERVAL
        reach(driver, max(before) + INTERVAL + 2)
    assert driver.end(400) == 0, driver.said
    assert delivered(mlflow, 20) == list(range(1, total(driver) + 1))


def test_the_driver_dies_and_the_job_is_submitted_again(lab: Lab, base: str, mlflow: Server) -> None:
    driver = lab.submit(*stage2(base, 21), MLFLOW_TRACKING_URI=mlflow.url)
    reach(driver, 9)
    for process in lab.cluster.head.processes(PIPELINE):
        if "JobSupervisor" not in " ".join(process.cmdline()):
            process.kill()
    assert driver.end() != 0
    again = lab.submit(*stage2(base, 21), MLFLOW_TRACKING_URI=mlflow.url)
    assert again.end(400) == 0, again.said
    assert all(f"{stage}: stands, not run again" in again.said for stage in BEFORE)
    assert redone(steps(driver.lines), steps(again.lines)) <= INTERVAL
    assert max(steps(again.lines)) == total(again)


def test_mlflow_dies_in_the_middle_and_returns(lab: Lab, base: str, tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server:
        # Else MLflow's client itself would wait for so short an absence.
        impatient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        driver = lab.start(*stage2(base, 22), MLFLOW_TRACKING_URI=server.url, **impatient)
        reach(driver, 5)
        server.kill()
        reach(driver, 30)
        server.start()
        assert driver.end(400) == 0, driver.said
        done = steps(driver.lines)
        assert done == list(range(1, total(driver) + 1)), "training was disturbed"
        assert delivered(server, 22) == done


def test_s3_refuses_one_request_in_five_and_is_away_for_20_seconds(lab: Lab, mlflow: Server) -> None:
    workspace = lab.place("flaky")
    with FlakyProxy(lab.s3.url, fail_one_in=5) as proxy:
        variables = {"AWS_ENDPOINT_URL": proxy.url, "MLFLOW_TRACKING_URI": mlflow.url}
        driver = lab.submit(PIPELINE, "--workspace", workspace, *TINY, **variables)
        driver.until(r"\] stage1:", seconds=300)
        proxy.away_for(20)
        assert driver.end(600) == 0, driver.said
        assert proxy.refused > proxy.requests / 10 > 10
    assert storage.read_json(f"{workspace}/report/results.json")["images"] == 5
