"""Run a command in a process of its own or in the tests' process, and the settings of tiny pipelines."""

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import pytest

from deconvnet.datasets.palette import GENERATED_CLASSES
from tests.conftest import ROOT
from workflows import cli

TINY = shlex.split(
    "--data.generated.train 24 --data.generated.val 5 --data.generated.height 64 --data.generated.width 80 --data.dev_fraction "
    "0.2 --model.width 0.05 --model.fcn_width 0.05 --model.fcn_input_size 96 --proposals.max_boxes 60 --segment.proposals 10 "
    "--train.fcn8s.epochs 1 --train.stage1.epochs 1 --train.stage2.epochs 1 --train.stage1.batch 16 --train.stage2.batch 16 "
    "--train.fcn8s.bn_batches 2 --train.stage1.bn_batches 2 --train.stage2.bn_batches 2 "
    "--train.stage2.log_every 2"
)
LOCAL = ["--executor", "local", "--cluster.num_cpus", "1"]
"""Options that run everything in the process of the command."""
STEPS = 3
SMALL = [
    *("--executor", "local", "--tracking.enabled", "false", "--model.width", "0.05", "--model.fcn_width", "0.05"),
    *("--model.input_size", "32", "--model.fcn_input_size", "64", "--segment.proposals", "4", "--proposals.max_boxes", "50"),
    *("--cluster.num_cpus", "1", "--data.classes", ",".join(GENERATED_CLASSES), "--data.dev_fraction", "0.2"),
]
"""A tiny pipeline without Ray and MLflow on images that `synthetic.write_dataset` wrote; each training has `STEPS` steps."""
for _stage in ("fcn8s", "stage1", "stage2"):
    SMALL += [f"--train.{_stage}.max_steps", str(STEPS), f"--train.{_stage}.batch", "4", f"--train.{_stage}.bn_batches", "1"]
    SMALL += [f"--train.{_stage}.log_every", "1"]
_ELSEWHERE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "DECONVNET_NOTIFY_URL")

Done = subprocess.CompletedProcess[str]


def command(*arguments: str, script: str = "train_pipeline.py") -> list[str]:
    """The command line of a script."""
    return [sys.executable, str(ROOT / "workflows" / script), *arguments]


def run(*arguments: str, script: str = "train_pipeline.py", **environment: str) -> Done:
    """Run a script in a process of its own, which takes seconds to start."""
    clean = {k: v for k, v in os.environ.items() if k not in _ELSEWHERE} | environment
    return subprocess.run(command(*arguments, script=script), capture_output=True, text=True, env=clean, cwd="/")


def call(main: Callable[[list[str]], None], *arguments: str, **environment: str) -> Done:
    """Run the main function of a script in this process, as the script does; Ray must not be started."""
    said, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(errors):
        for name in _ELSEWHERE:
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir("/")
        patch.setattr("infra.runtime.cluster.connected", lambda settings: pytest.fail("Ray is not needed"))
        try:
            code = cli.run(lambda: main(list(arguments)))
        except SystemExit as end:  # of --help
            code = int(end.code or 0)
    return subprocess.CompletedProcess(list(arguments), code, said.getvalue(), errors.getvalue())
