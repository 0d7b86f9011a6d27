"""Predictions of six images, and export.py on them."""

from pathlib import Path

import pytest

from tests.deconvnet.datasets.exporting.scenes import scene_mask
from tests.workflows.commands import Done, call
from tests.workflows.export.exporting import NAMES, Run, write_predictions
from workflows import export


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """What predict.py has written for six images of scenes."""
    return write_predictions(tmp_path, [scene_mask(number) for number in range(len(NAMES))])


@pytest.fixture
def run(predictions: Path, tmp_path: Path) -> Run:
    def call_export(name: str, *more: str) -> Done:
        return call(export.main, "--format", name, "--predictions", str(predictions), "--to", str(tmp_path / "out"), *more)

    return call_export
