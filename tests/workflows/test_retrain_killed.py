"""A retraining that is killed at any moment and run again: one version a run, and never a worse champion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deconvnet.datasets import synthetic
from tests.conftest import ROOT
from tests.workflows.commands import SMALL

NEAR_THE_REGISTRY = """
import json, sys
from pathlib import Path
from tests.workflows.killed import attempt, registry
arguments, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
moments = [("registered", 1), ("alias moved", 2), ("finished", 1)]
for number, moment in enumerate(moments):
    assert not attempt(arguments, folder / f"{number}.log", moment=moment), moment
    runs, champion, _ = registry(folder / "w/mlflow/mlflow.db")
    assert list(runs.values()) == [1], (moment, runs)
    assert champion == (1 if number else None), (moment, champion)
    if number:
        assert "fcn8s: complete, not run again" in (folder / f"{number}.log").read_text(), "it was trained anew"
assert attempt(arguments, folder / "last.log")
assert "Nothing new" in (folder / "last.log").read_text()
"""
AT_RANDOM = """
import json, random, sys, time
from pathlib import Path
from tests.workflows.killed import attempt, better, registry
arguments, folder, moments = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
store, random = folder / "w/mlflow/mlflow.db", random.Random(int(sys.argv[4]))

def check(before):
    runs, champion, tags = registry(store)
    assert set(runs.values()) <= {1}, runs
    if before is not None:
        assert champion == before or (champion > before and better(tags[champion]["generation"])), (before, champion)
    return champion

begun = time.monotonic()
assert attempt(arguments, folder / "first.log")
whole = time.monotonic() - begun
champion, killed, promoted, new = check(None), 0, 0, True
assert champion == 1
while killed < moments:
    begun = time.monotonic()
    done = attempt([*arguments, "--force"], folder / f"{killed}.log", seconds=random.uniform(0, whole))
    if done and new:
        whole = time.monotonic() - begun
    killed, new = killed + (not done), done
    promoted += check(champion) != champion
    champion = check(champion)
assert attempt([*arguments, "--force"], folder / "last.log")
check(champion)
print("killed", killed, "promoted", promoted, "versions", len(registry(store)[2]))
"""


def run(script: str, folder: Path, val: int, steps: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the options of a tiny retraining by the local executor, in the workspace `w` below a folder."""
    synthetic.write_dataset(str(folder / "data"), 0, 16, val, 64, 96)
    options = [*SMALL, "--tracking.enabled", "true", "--tracking.system_metrics", "false", "--retrain.max_class_drop", "1"]
    for stage in ("fcn8s", "stage1", "stage2"):
        options += [f"--train.{stage}.max_steps", str(steps), f"--train.{stage}.checkpoint_every", "2"]
    config = str(ROOT / "workflows/configs/quickstart.yaml")
    arguments = ["--config", config, "--workspace", str(folder / "w"), "--data.root", str(folder / "data"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, json.dumps(arguments), str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_a_retraining_that_is_killed_near_the_registry_keeps_one_version_and_trains_nothing_anew(tmp_path: Path) -> None:
    done = run(NEAR_THE_REGISTRY, tmp_path, 2, 2)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_retraining_that_is_killed_at_forty_random_moments(tmp_path: Path) -> None:
    done = run(AT_RANDOM, tmp_path, 4, 2, "40", "1")
    assert done.returncode == 0, done.stderr
    assert "killed 40" in done.stdout and "promoted 0" not in done.stdout
