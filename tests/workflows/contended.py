"""Run two commands at the same time in one folder, in forked processes that are paused, frozen and let go at random moments.

Each command trains a few tiny networks on the same images with a seed of its own, or predicts the same images with a version of
its own. The same commands, run one after the other, give the models, results and masks that may be found afterwards. Whatever
else is found is a mixture. Nothing here starts a thread or opens MLflow before it forks.
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from deconvnet.datasets import synthetic
from deconvnet.tracking.registry import REJECTED
from infra.storage import lock as lock_module
from tests.conftest import ROOT
from tests.workflows.commands import SMALL
from tests.workflows.forked import fork, read_registry
from workflows import predict, retrain, train_pipeline

for _module in ("inference.predictor", "tracking.mlflow_runs", "tracking.register", "training.local_trainer"):
    importlib.import_module(f"deconvnet.{_module}")  # those that a command imports late
for _module in ("retraining", "prediction"):
    importlib.import_module(f"workflows.operations.{_module}")

AHEAD = multiprocessing.RawValue("d", 0.0)
"""Seconds by which the locks' clock is ahead of the machine's, in all processes."""
DAY = 24 * 3600
Found = set[tuple[object, ...]]


@dataclass(frozen=True)
class Command:
    """A command with its options, in which {folder} is the folder of all rounds and {place} that of one round."""

    main: Callable[[list[str]], None]
    options: tuple[str, ...]

    def start(self, folder: Path, place: Path, log: str) -> int:
        """Start the command in a child process, whose locks go by `AHEAD`, and return its process id."""

        def command() -> None:
            lock_module.time = SimpleNamespace(time=lambda: time.time() + AHEAD.value)  # type: ignore[assignment]
            self.main([option.format(folder=folder, place=place) for option in self.options])

        return fork(command, place / log)


def training(main: Callable[[list[str]], None], seed: int, *more: str) -> Command:
    """Make a command that trains the networks with a seed, and registers them."""
    options = [*SMALL, "--tracking.enabled", "true", "--tracking.system_metrics", "false", "--retrain.max_class_drop", "1"]
    for stage in ("fcn8s", "stage1", "stage2"):
        options += [f"--train.{stage}.max_steps", "1", f"--train.{stage}.checkpoint_every", "1"]
    where = [
        "--config",
        str(ROOT / "workflows/configs/quickstart.yaml"),
        "--data.root",
        "{folder}/data",
        "--workspace",
        "{place}/w",
    ]
    return Command(main, (*where, "--seed", str(seed), *options, *more))


def predicting(version: int) -> Command:
    """Make a command that predicts the images with a version that the references of "train, train" have registered."""
    where = ("--workspace", "{folder}/00/w", "--input", "{folder}/data/JPEGImages", "--output", "{place}/w/out")
    return Command(predict.main, (*where, "--executor", "local", "--model", f"models:/edeconvnet/{version}"))


TRAIN, RETRAIN = train_pipeline.main, retrain.main
PAIRS: dict[str, tuple[Command, Command]] = {
    "train, train": (training(TRAIN, 0), training(TRAIN, 5)),
    "train, retrain": (training(TRAIN, 0), training(RETRAIN, 5, "--force")),
    "retrain, retrain": (training(RETRAIN, 0, "--force"), training(RETRAIN, 5, "--force")),
    "predict, predict": (predicting(1), predicting(2)),
    "train, predict": (training(TRAIN, 0), predicting(2)),
}


def wait(child: int) -> int:
    """Wait for a process and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child: int) -> bool:
    """Return whether a process has ended; `wait` still returns its exit code."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def take_turns(first: int, second: int, chance: random.Random) -> None:
    """Pause one, the other or none of two processes for random times until one has ended."""
    while not (ended(first) or ended(second)):
        paused = chance.choice([first, second, None])
        if paused:
            os.kill(paused, signal.SIGSTOP)
        time.sleep(chance.choice([0.003, 0.03, 0.3]) * chance.random())
        if paused:
            os.kill(paused, signal.SIGCONT)


def contend(
    pair: tuple[Command, Command], folder: Path, place: Path, chance: random.Random, usual: float
) -> tuple[str, list[int]]:
    """Run two commands at the same time.

    Half of the times the two take turns at random. Otherwise the first is frozen at a random moment, its lock expires, the second
    begins, and the first goes on at another random moment.

    Args:
        pair: the commands.
        folder: folder of all rounds.
        place: folder of this round, for the workspace `w` and the logs.
        chance: source of the random moments.
        usual: seconds that a command takes when it runs alone.

    Returns:
        "frozen" or "turns", and the exit codes.
    """
    pair = pair if chance.random() < 0.5 else pair[::-1]
    frozen = chance.random() < 0.5
    first = pair[0].start(folder, place, "first.log")
    if frozen:
        time.sleep(chance.uniform(0, usual))
        os.kill(first, signal.SIGSTOP)
        AHEAD.value += DAY
        second = pair[1].start(folder, place, "second.log")
        deadline = time.monotonic() + chance.uniform(0, 1.3 * usual)
        while time.monotonic() < deadline and not ended(second):
            time.sleep(0.02)
        os.kill(first, signal.SIGCONT)
    else:
        time.sleep(chance.choice([0, chance.uniform(0, usual)]))
        second = pair[1].start(folder, place, "second.log")
        take_turns(first, second, chance)
    return "frozen" if frozen else "turns", [wait(first), wait(second)]


def digest(*files: Path) -> str:
    """Return a digest of the content of files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def trained(workspace: Path) -> Found:
    """Return the digests of weights and results in each workspace and generation whose evaluation is complete."""
    found: Found = set()
    for record in [workspace / "stages/evaluate.json", *workspace.glob("generations/*/stages/evaluate.json")]:
        if record.exists():
            root = record.parent.parent
            weights = (digest(root / f"models/{stage}/model.safetensors") for stage in ("fcn8s", "stage1", "stage2"))
            found.add(("workspace", *weights, digest(root / "report/results.json")))
    return found


def predicted(output: Path) -> Found:
    """Return the name, the model's version and a digest of the pixels of each mask in an output folder, and all versions."""
    found: Found = set()
    for path in (output / "masks").rglob("*.png"):
        mask = Image.open(path)
        pixels = hashlib.sha256(mask.tobytes()).hexdigest()[:12]
        found.add(("mask", path.name, str(mask.info["Comment"]).split(",")[0], pixels))
    return found | {("versions", *sorted({str(version) for _, _, version, _ in found}))} if found else found


def registered(workspace: Path) -> tuple[Found, list[str]]:
    """Return what each registered version holds, and what is wrong with the registry.

    Returns:
        The seed, the digest of the weights and the mean IoUs of each version; and a sentence for each fault.
    """
    registry, found = read_registry(workspace / "mlflow/mlflow.db"), set[tuple[object, ...]]()
    versions = [(version, run, source) for version, run, source, status in registry.versions if status == "READY"]
    faults = [f"run {run} has {n} versions" for run, n in Counter(run for _, run, _ in versions).items() if n > 1]
    if registry.champion and registry.tags[registry.champion].get("verdict") == REJECTED:
        faults.append(f"the champion, version {registry.champion}, was not promoted")
    for version, run, source in versions:
        models = Path(source.removeprefix("file://")) / "artifacts/ensemble"
        weights = digest(models / "fcn8s/model.safetensors", models / "deconvnet/model.safetensors")
        results = sorted(item for item in registry.tags[version].items() if item[0].startswith("mean_iou"))
        found.add(("version", registry.seeds.get(run), weights, *results))
    return found, faults


def found_in(workspace: Path) -> Found:
    """Return what the registry, the workspaces and a folder's predictions hold; AssertionError for a fault of the registry."""
    versions, faults = registered(workspace)
    assert not faults, faults
    return versions | trained(workspace) | predicted(workspace / "out")


def one_after_the_other(pair: Sequence[Command], folder: Path, place: Path) -> tuple[Found, float]:
    """Run commands one after the other, and return what is found after each and the seconds that the slowest took."""
    place.mkdir()
    slowest = 0.0
    found: Found = set()
    for number, command in enumerate(pair):
        begun = time.monotonic()
        code = wait(command.start(folder, place, f"{number}.log"))
        assert code == 0, (place / f"{number}.log").read_text()
        slowest = max(slowest, time.monotonic() - begun)
        found |= found_in(place / "w")
    return found, slowest


def check(place: Path, allowed: Found, said: str, complete: bool) -> None:
    """Raise AssertionError if the workspace of a round, its registry or its predictions hold a mixture.

    If both commands have completed, it is also raised if an image has no mask. A prediction that was stopped may have some.
    """
    found = found_in(place / "w")
    assert found <= allowed, f"{said}: {found - allowed} is neither of the two runs'"
    predicted_images, images = ({item[1] for item in some if item[0] == "mask"} for some in (found, allowed))
    assert not complete or predicted_images == images, f"{said}: {images - predicted_images} have no masks"


def main(folder: Path, rounds: int, seed: int, first: int = 0) -> None:
    """Let pairs of commands contend in rounds from `first` on, and print how often each pair of exit codes was seen."""
    synthetic.write_dataset(str(folder / "data"), 0, 8, 2, 32, 48)
    allowed: dict[str, Found] = {}
    usual: dict[str, float] = {}
    for number, (name, pair) in enumerate(PAIRS.items()):
        # Twice, because a retraining starts from the champion: a round in which both completed, run again, has four in a row.
        orders = [pair * 2, pair[::-1] * 2]
        both = [one_after_the_other(order, folder, folder / f"{number}{i}") for i, order in enumerate(orders)]
        allowed[name], usual[name] = both[0][0] | both[1][0], both[0][1]
    seen: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for number in range(first, rounds):
        chance = random.Random(f"{seed} {number}")
        name = list(PAIRS)[number % len(PAIRS)]
        place = folder / f"round{number}"
        place.mkdir()
        kind, codes = contend(PAIRS[name], folder, place, chance, usual[name])
        said = f"round {number}, {name}, {kind}: {codes} in {place}"
        assert set(codes) <= ({0, 3} if kind == "turns" else {0, 2, 3, 75}), said
        # A process that is frozen while it writes to MLflow's SQLite file keeps others out of it. They leave with a message.
        kept_out = kind == "frozen" and "database is locked" in (place / "second.log").read_text()
        assert 0 in codes or kept_out, said
        check(place, allowed[name], said, not any(codes))
        if number % 4 == 0 or 0 not in codes:  # run again, each command completes
            AHEAD.value += DAY
            for command in PAIRS[name]:
                again = replace(command, options=tuple(option for option in command.options if option != "--force"))
                code = wait(again.start(folder, place, "again.log"))
                assert code == 0, f"{said}: run again {code}: {(place / 'again.log').read_text()}"
            check(place, allowed[name], f"{said}, run again", True)
        seen[name, kind, tuple(sorted(codes))] += 1
        shutil.rmtree(place)
        print(said, flush=True)
    print(json.dumps([[*key[:2], list(key[2]), times] for key, times in sorted(seen.items())]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
