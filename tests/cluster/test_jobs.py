"""`ray job submit` to a real head with a token: in the project's folder, and with the code uploaded."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.deploy.local.cluster import Cluster, ray_cluster
from tests.conftest import ROOT
from tests.workflows.commands import TINY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass
class Head:
    """A head node, with the environment that a user's terminal would have."""

    cluster: Cluster

    def ray(self, *arguments: str, cwd: Path = ROOT, check: bool = True) -> str:
        """Run a `ray` command and return what it prints."""
        done = subprocess.run(
            self.cluster.ray(*arguments),
            env=self.cluster.environment,
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=500,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_cluster((), head_cpus=2) as cluster:
        yield Head(cluster)


def test_a_job_runs_in_the_folder_of_ray_start(head: Head, tmp_path: Path) -> None:
    output = head.ray("job", "submit", "--", "python", "workflows/train_pipeline.py", "--workspace", str(tmp_path / "w"), *TINY)
    assert "EDeconvNet+CRF" in output and "succeeded" in output
    assert (tmp_path / "w" / "report" / "results.json").is_file()


@pytest.mark.slow
def test_a_job_runs_the_uploaded_code(head: Head, tmp_path: Path) -> None:
    """The code that runs must be the uploaded copy, as on a cluster that has only the dependencies."""
    copy = tmp_path / "project"
    for name in ("workflows", "deconvnet", "proposals", "infra"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "infra" / "errors.py").open("a").write(
        f"\nimport pathlib\npathlib.Path({str(tmp_path / 'seen')!r}).write_text(__file__)\n"
    )
    pipeline = ["python", "workflows/train_pipeline.py", "--workspace", str(tmp_path / "w"), *TINY]
    output = head.ray("job", "submit", "--working-dir", ".", "--", *pipeline, cwd=copy)
    assert "EDeconvNet+CRF" in output and "succeeded" in output
    assert "runtime_resources" in (tmp_path / "seen").read_text()


def test_a_relative_workspace_is_refused_if_the_jobs_folder_is_temporary(head: Head, tmp_path: Path) -> None:
    output = head.ray(
        "job", "submit", "--working-dir", ".", "--", "python", "workflows/train_pipeline.py", "--workspace", "runs/x", check=False
    )
    assert "absolute path" in output and "Traceback" not in output


@pytest.mark.slow
def test_a_stopped_job_leaves_a_checkpoint_and_is_resumed(head: Head, tmp_path: Path) -> None:
    pipeline = ["python", "workflows/train_pipeline.py", "--workspace", str(tmp_path / "w"), *TINY]
    pipeline += ["--train.fcn8s.epochs", "300", "--train.fcn8s.log_every", "1"]
    output = head.ray("job", "submit", "--no-wait", "--submission-id", "to-stop", "--", *pipeline)
    assert "to-stop" in output
    for _ in range(120):
        if re.search(r"step [5-9]\d*/", head.ray("job", "logs", "to-stop")):
            break
        time.sleep(1)
    head.ray("job", "stop", "to-stop")
    logs = head.ray("job", "logs", "to-stop")
    assert "has left a checkpoint" in logs, logs[-3000:]
    stopped = max(int(n) for n in re.findall(r"step (\d+)/", logs))
    head.ray("job", "submit", "--no-wait", "--submission-id", "again", "--", *pipeline)
    for _ in range(120):
        steps = [int(n) for n in re.findall(r"step (\d+)/", head.ray("job", "logs", "again"))]
        if steps:
            break
        time.sleep(1)
    head.ray("job", "stop", "again")
    assert steps[0] >= stopped
