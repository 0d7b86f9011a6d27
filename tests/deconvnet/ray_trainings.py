"""Small trainings on Ray Train, what they log, and the processes that they run in."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training.job import TrainingJob
from tests.deconvnet.training_tables import SIZE

CLASSES = ("background", "red", "green")
WHILE_WRITTEN = 2
"""Most steps that these small trainings do while a checkpoint is written."""
MODEL = ModelSettings(width=0.05, input_size=SIZE, fcn_input_size=64, fcn_batch_norm=True)


def stage(**changes: Any) -> StageSettings:
    values = {"batch": 16, "max_steps": 8, "lr": 0.001, "log_every": 1, "schedule": "constant", "bn_batches": 2}
    return StageSettings(**{**values, **changes})


def job(folder: Path, **changes: Any) -> TrainingJob:
    options: dict[str, Any] = {
        "stage": "stage1",
        "model": MODEL,
        "settings": stage(),
        "compute": ComputeSettings(),
        "examples_uri": f"{folder}/examples",
        "dev_uri": f"{folder}/examples",
        "classes": CLASSES,
        "checkpoints_uri": f"{folder}/runs",
        "run_name": "run",
        "out_uri": f"{folder}/model",
    }
    return TrainingJob(**{**options, **changes})


def losses(lines: list[str]) -> dict[int, float]:
    found = (re.search(r"step (\d+)/.*loss ([\d.]+)", line) for line in lines)
    return {int(m[1]): float(m[2]) for m in found if m}


def reported_steps(lines: list[str]) -> list[int]:
    """Return the step of each progress line, in order."""
    return [int(found[1]) for line in lines if (found := re.search(r"step (\d+)/.*loss", line))]


def processes_below(pid: int, name: str) -> list[psutil.Process]:
    """The processes of Ray with this name, of the Ray that process `pid` has started: other tests run beside this one."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found += [process] if name in " ".join(process.cmdline()) else []
    return found
