"""Two real commands in one workspace at the same time: one leaves, or one completes after the other; never a mixture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deconvnet.datasets import synthetic
from tests.conftest import ROOT
from tests.workflows.test_local_executor import SMALL


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_forty_random_interleavings_of_trainings_and_retrainings_never_mix(tmp_path: Path) -> None:
    """200 with CONTENDED_ROUNDS=200."""
    synthetic.write_dataset(str(tmp_path / "data"), 0, 8, 2, 32, 48)
    options = [*SMALL, "--tracking.enabled", "true", "--tracking.system_metrics", "false", "--retrain.max_class_drop", "1"]
    for stage in ("fcn8s", "stage1", "stage2"):
        options += [f"--train.{stage}.max_steps", "1", f"--train.{stage}.checkpoint_every", "1"]
    config = str(ROOT / "workflows/configs/quickstart.yaml")
    arguments = json.dumps(["--config", config, "--data.root", str(tmp_path / "data"), *options])
    rounds = os.environ.get("CONTENDED_ROUNDS", "40")
    command = [sys.executable, "-m", "tests.workflows.contended", arguments, str(tmp_path), rounds, "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    seen = {(kind, tuple(codes)) for _, kind, codes, _ in json.loads(done.stdout.splitlines()[-1])}
    assert ("turns", (0, 3)) in seen and ("frozen", (0, 75)) in seen, "the commands never met"
