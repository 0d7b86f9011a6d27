"""The example notebook runs from its first cell to its last, on a model registered for the test."""

import os
import subprocess
import sys

import cv2

from deconvnet.tracking.mlflow_runs import MlflowTracker
from tests.conftest import ROOT
from tests.deconvnet.ensembles import random_image, register_ensemble, save_networks


def test_the_notebook_runs(tmp_path, monkeypatch, make_store) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "registered"
    save_networks(folder)
    register_ensemble(MlflowTracker(make_store(folder / "work"), "test"), folder)
    for seed in range(3):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), random_image(seed, 64, 80))
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
    )
    assert run.returncode == 0, run.stdout[-3000:]
