"""Run retrain.py again and again in forked processes that are killed, so that each attempt need not import everything.

Nothing here starts a thread or opens MLflow before it forks.
"""

import importlib
import os
import signal
import time
import zlib
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from deconvnet.evaluation.comparison import RiseInterval
from tests.workflows.forked import fork, read_registry
from workflows import retrain
from workflows.pipelines import generations, retraining
from workflows.pipelines.retraining import Retraining

for _module in ("inference.predictor", "tracking.mlflow_runs", "tracking.register", "training.local_trainer"):
    importlib.import_module(f"deconvnet.{_module}")  # those that a retraining imports late
importlib.import_module("workflows.operations.retraining")
MOMENTS = {
    "registered": (MlflowClient, "create_model_version"),
    "alias moved": (MlflowClient, "set_registered_model_alias"),
    "tagged": (MlflowClient, "set_model_version_tag"),
    "finished": (generations, "finish"),
}
"""Functions after whose call a process may be killed."""


def kill_after(moment: str, count: int) -> None:
    """Let this process be killed once a function of `MOMENTS` has been called `count` times."""
    owner, name = MOMENTS[moment]
    function = getattr(owner, name)
    calls = iter(range(1, count + 1))

    def counted(*args: object, **kwargs: object) -> object:
        result = function(*args, **kwargs)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def better(generation: str) -> bool:
    """Whether the new model of a generation counts as better than the champion in these tests: that of every second one."""
    return zlib.crc32(generation.encode()) % 2 == 0


def decide_by_generation() -> None:
    """Let this process take the rise that decides from `better`, because models so tiny learn nothing that differs."""
    decide = Retraining._decide

    def decided(self: Retraining, fingerprint: str) -> dict[str, object]:
        lower = 0.01 if better(self.generation.name) else -0.01
        retraining.mean_iou_rise = lambda champion, challenger: RiseInterval(0.02, lower, 0.04 - lower, len(champion))
        return decide(self, fingerprint)

    Retraining._decide = decided  # type: ignore[method-assign]


def attempt(arguments: list[str], log: Path, *, moment: tuple[str, int] | None = None, seconds: float | None = None) -> bool:
    """Run retrain.py in a child process, which is killed at a moment or after some seconds.

    Returns:
        Whether it came to its end.
    """

    def command() -> None:
        decide_by_generation()
        if moment:
            kill_after(*moment)
        retrain.main(arguments)

    child = fork(command, log)
    deadline = time.monotonic() + (seconds if seconds is not None else 500)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() >= deadline:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, log.read_text()
    return os.WIFEXITED(status)


def registry(store: Path) -> tuple[Counter[str], int | None, dict[int, dict[str, str]]]:
    """Read the registry's database: number of versions by run, the champion, and the tags of each version."""
    found = read_registry(store)
    return Counter(run for _, run, *_ in found.versions), found.champion, found.tags
