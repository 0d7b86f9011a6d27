"""The example notebook runs from its first cell to its last, on a model registered for the test."""

import os
import subprocess
import sys

import cv2

from tests.conftest import ROOT
from tests.deconvnet.tracking.test_register import filed, folder, networks, photograph, tracker  # noqa: F401  (fixtures)


def test_the_notebook_runs(folder, tracker, tmp_path) -> None:  # noqa: F811
    filed(tracker, folder)
    for seed in range(3):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), photograph(seed, 64, 80))
    variables = {"WORKSPACE": str(folder / "work"), "MODEL": "models:/shapes@challenger", "IMAGES": str(tmp_path)}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbmake",
            "--nbmake-kernel=python3",
            "-p",
            "no:cacheprovider",
            "examples/segment.ipynb",
        ],
        cwd=ROOT,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert run.returncode == 0, run.stdout[-3000:]
