"""`ray job submit` with the code uploaded, and jobs that are stopped. `test_train_pipeline.py` submits one in the project's folder."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.ray_head import Head
from tests.waiting import wait_until
from tests.workflows.commands import TINY

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
