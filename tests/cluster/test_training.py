"""The pipeline on three nodes with its workspace on S3, while workers, nodes, the driver, MLflow or S3 fail."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra import storage
from infra.deploy.local.process import Server
from infra.deploy.local.servers import mlflow_server
from tests.cluster.conftest import ClusterFixture, Driver
from tests.servers import FlakyProxy
from tests.workflows.commands import TINY

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(900)]
PIPELINE = "workflows/train_pipeline.py"
INTERVAL = 3
WHILE_WRITTEN = 2
"""Most steps that are done while a checkpoint is written."""
BEFORE = ("prepare", "proposals", "examples", "fcn8s", "stage1")
EVERY_STEP = ["--train.stage2.log_every", "1", "--train.stage2.checkpoint_every", str(INTERVAL)]


@pytest.fixture(scope="module")
def base(started: ClusterFixture, mlflow: Server) -> str:
    """A workspace in which the pipeline is complete: with other settings of stage 2, only that stage and later ones run."""
    started.replace_dead_nodes()
    workspace = started.new_uri("base")
    driver = started.start(PIPELINE, "--workspace", workspace, *TINY, MLFLOW_TRACKING_URI=mlflow.url)
    assert driver.end(400) == 0, driver.output
    return workspace


def stage2(workspace: str, epochs: int) -> list[str]:
    """Arguments for a stage 2 that has not run before: each test uses another number of epochs."""
    return [PIPELINE, "--workspace", workspace, *TINY, *EVERY_STEP, "--train.stage2.epochs", str(epochs)]


def steps(lines: Sequence[str]) -> list[int]:
    """The steps for which stage 2 printed a loss, in order."""
    start = next((i for i, line in enumerate(lines) if "] stage2:" in line), len(lines))
    end = next((i for i, line in enumerate(lines) if "] evaluate:" in line), len(lines))
    found = (re.search(r"step ([\d,]+)/.*loss", line) for line in lines[start:end])
    return [int(m[1].replace(",", "")) for m in found if m]


def reach(driver: Driver, step: int) -> None:
    """Wait until stage 2 has printed this step."""
    deadline = time.monotonic() + 300
    while max(steps(driver.lines), default=0) < step:
        assert driver.process.poll() is None and time.monotonic() < deadline, f"not at step {step}:\n{driver.output[-6000:]}"
        time.sleep(0.05)


def total(driver: Driver) -> int:
    """The number of steps of stage 2, as printed at its start."""
    found = re.search(r"at most ([\d,]+) steps", driver.output[driver.output.index("] stage2:") :])
    assert found
    return int(found[1].replace(",", ""))


def steps_in_mlflow(server: Server, epochs: int) -> list[int]:
    """The steps of stage 2's loss curve in MLflow, of the finished run with this many epochs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("deconvnet")
    found = client.search_runs(
        [experiment.experiment_id], f"tags.stage = 'stage2' and params.`train.epochs` = '{epochs}'", order_by=["start_time"]
    )
    (run,) = found
    assert run.info.status == "FINISHED"
    return [m.step for m in client.get_metric_history(run.info.run_id, "loss")]


def count_repeated(before: Sequence[int], after: Sequence[int]) -> int:
    """The number of steps that ran a second time."""
    return max(before) - min(after) + 1


def test_training_resumes_after_a_worker_and_then_its_node_die(cluster: ClusterFixture, base: str, mlflow: Server) -> None:
    driver = cluster.start(
        *stage2(base, 20), "--compute.workers", "2", "--compute.min_workers", "1", MLFLOW_TRACKING_URI=mlflow.url
    )
    reach(driver, 8)
    training = [node for node in cluster.local.nodes if node.processes("RayTrainWorker")]
    assert len(training) == 2
    for kill in (training[0].processes("RayTrainWorker")[0].kill, training[0].kill):
        seen = len(driver.lines)
        kill()
        failed = driver.until("workers failed", after=seen)
        driver.until(r"step \d+/.*loss", after=failed)
        before = steps(driver.lines[:failed])
        assert count_repeated(before, steps(driver.lines)[len(before) :]) <= INTERVAL + WHILE_WRITTEN
        reach(driver, max(before) + INTERVAL + 2)
    assert driver.end(400) == 0, driver.output
    assert steps_in_mlflow(mlflow, 20) == list(range(1, total(driver) + 1))


def test_a_job_whose_driver_died_is_resumed_when_submitted_again(cluster: ClusterFixture, base: str, mlflow: Server) -> None:
    driver = cluster.submit(*stage2(base, 21), MLFLOW_TRACKING_URI=mlflow.url)
    reach(driver, 9)
    for process in cluster.local.head.processes(PIPELINE):
        if "JobSupervisor" not in " ".join(process.cmdline()):
            process.kill()
    assert driver.end() != 0
    again = cluster.submit(*stage2(base, 21), MLFLOW_TRACKING_URI=mlflow.url)
    assert again.end(400) == 0, again.output
    assert all(f"{stage}: complete, not run again" in again.output for stage in BEFORE)
    assert count_repeated(steps(driver.lines), steps(again.lines)) <= INTERVAL + WHILE_WRITTEN
    assert max(steps(again.lines)) == total(again)


def test_training_is_not_disturbed_by_an_outage_of_mlflow_and_no_metric_is_lost(
    cluster: ClusterFixture, base: str, tmp_path: Path
) -> None:
    with mlflow_server(tmp_path) as server:
        # MLflow's client would otherwise retry for longer than the outage lasts.
        few_retries = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        driver = cluster.start(*stage2(base, 22), MLFLOW_TRACKING_URI=server.url, **few_retries)
        reach(driver, 5)
        server.kill()
        reach(driver, 30)
        server.start()
        assert driver.end(400) == 0, driver.output
        done = steps(driver.lines)
        assert done == list(range(1, total(driver) + 1)), "training was disturbed"
        assert steps_in_mlflow(server, 22) == done


def test_the_pipeline_completes_though_s3_fails_often_and_has_an_outage(cluster: ClusterFixture, mlflow: Server) -> None:
    workspace = cluster.new_uri("flaky")
    with FlakyProxy(cluster.s3.url, fail_one_in=5) as proxy:
        variables = {"AWS_ENDPOINT_URL": proxy.url, "MLFLOW_TRACKING_URI": mlflow.url}
        driver = cluster.submit(PIPELINE, "--workspace", workspace, *TINY, **variables)
        driver.until(r"\] stage1:", seconds=300)
        proxy.away_for(20)
        assert driver.end(600) == 0, driver.output
        assert proxy.refused > proxy.requests / 10 > 10
    assert storage.read_json(f"{workspace}/report/results.json")["images"] == 5
