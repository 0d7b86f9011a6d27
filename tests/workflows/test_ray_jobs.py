"""`ray job submit` with the code uploaded, and jobs and drivers that are stopped.

tests/workflows/test_train_pipeline.py submits one in the project's folder, for which most stages are complete.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.storage import tables
from tests.conftest import ROOT
from tests.ray_head import Head
from tests.waiting import wait_until
from tests.workflows.commands import TINY, command, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_job_runs_the_uploaded_code(ray_head: Head, tmp_path: Path) -> None:
    """The code that runs must be the uploaded copy, as on a cluster that has only the dependencies."""
    copy = tmp_path / "project"
    for name in ("workflows", "deconvnet", "proposals", "infra"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "infra" / "errors.py").open("a").write(
        f"\nimport pathlib\npathlib.Path({str(tmp_path / 'seen')!r}).write_text(__file__)\n"
    )
    pipeline = ["python", "workflows/train_pipeline.py", "--workspace", str(tmp_path / "w"), *TINY]
    output = ray_head.ray("job", "submit", "--working-dir", ".", "--", *pipeline, cwd=copy)
    assert "EDeconvNet+CRF" in output and "succeeded" in output
    assert "runtime_resources" in (tmp_path / "seen").read_text()
    results = json.loads((tmp_path / "w/report/results.json").read_text())
    assert list(results["rows"]) == ["fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf"]
    assert not (tmp_path / "w/train").exists(), "Ray Train's checkpoints, which are not needed any more"
    client = MlflowClient(*[f"sqlite:///{tmp_path}/w/mlflow/mlflow.db"] * 2)
    (stage2,) = client.search_runs([client.get_experiment_by_name("deconvnet").experiment_id], "tags.stage = 'stage2'")
    losses = client.get_metric_history(stage2.info.run_id, "loss")
    assert [point.step for point in losses] == [2, 4, 6, 8], "Ray Train's controller reports them"


def test_a_stopped_job_leaves_a_checkpoint_and_is_resumed(ray_head: Head, tmp_path: Path) -> None:
    pipeline = ["python", "workflows/train_pipeline.py", "--workspace", str(tmp_path / "w"), *TINY]
    pipeline += ["--train.fcn8s.epochs", "300", "--train.fcn8s.log_every", "1"]
    output = ray_head.ray("job", "submit", "--no-wait", "--submission-id", "to-stop", "--", *pipeline)
    assert "to-stop" in output
    wait_until(lambda: bool(re.search(r"step [5-9]\d*/", ray_head.ray("job", "logs", "to-stop"))), description="step 5")
    ray_head.ray("job", "stop", "to-stop")
    logs = ray_head.ray("job", "logs", "to-stop")
    assert "has left a checkpoint" in logs, logs[-3000:]
    stopped = max(int(n) for n in re.findall(r"step (\d+)/", logs))
    ray_head.ray("job", "submit", "--no-wait", "--submission-id", "again", "--", *pipeline)
    steps: list[int] = []

    def logged() -> bool:
        steps[:] = [int(n) for n in re.findall(r"step (\d+)/", ray_head.ray("job", "logs", "again"))]
        return bool(steps)

    wait_until(logged, description="a step")
    ray_head.ray("job", "stop", "again")
    assert steps[0] >= stopped


def test_a_driver_killed_in_stage_2_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    few = "--train.stage2.epochs 12 --train.stage2.checkpoint_every 2 --train.stage2.log_every 1"
    arguments = ["--workspace", str(tmp_path / "w"), *TINY, *shlex.split(few)]
    driver = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True, cwd="/")
    assert driver.stdout
    step = 0
    for line in driver.stdout:
        if "stage2:" in line:
            step = -1
        if step < 0 and line.strip().startswith("step 9/"):
            driver.send_signal(signal.SIGKILL)
            break
    driver.wait()
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    for stage in ("prepare", "proposals", "examples", "fcn8s", "stage1"):
        assert f"{stage}: complete, not run again" in again.stdout
    stage2 = again.stdout[again.stdout.index("stage2:") :]
    first = next(int(line.split("/")[0].split()[1]) for line in stage2.splitlines() if line.strip().startswith("step "))
    assert first >= 7, f"resumed at step {first}: more than a checkpoint interval (2) was redone"


def test_sigterm_in_the_middle_of_a_stage_is_an_interruption(ray_head: Head, tmp_path: Path) -> None:
    arguments = ["--workspace", str(tmp_path / "w"), *TINY, "--data.generated.train", "1000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(command(*arguments), cwd="/", env=ray_head.environment, **pipes)
    wait_until(lambda: driver.poll() is not None or any((tmp_path / "w" / "images").rglob("part-*.parquet")))
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate()
    assert driver.returncode == 75 and "interrupted" in said and "Traceback" not in said
    assert tables.read_commit(str(tmp_path / "w" / "images")) is None, "the stage was complete before it was interrupted"
