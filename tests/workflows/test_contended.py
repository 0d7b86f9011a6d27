"""Two real commands in one folder at the same time: one leaves, or one completes after the other; never a mixture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_forty_random_interleavings_of_trainings_retrainings_and_predictions_never_mix(tmp_path: Path) -> None:
    """200 with CONTENDED_ROUNDS=200."""
    command = [sys.executable, "-m", "tests.workflows.contended", str(tmp_path), os.environ.get("CONTENDED_ROUNDS", "40"), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    seen = {(kind, tuple(codes)) for _, kind, codes, _ in json.loads(done.stdout.splitlines()[-1])}
    assert ("turns", (0, 3)) in seen and ("frozen", (0, 75)) in seen, "the commands never met"
