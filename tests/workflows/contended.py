"""Run two commands at the same time in one workspace, in forked processes that are paused, frozen and let go at random moments.

Each command trains a few tiny networks on the same images with a seed of its own. The same commands, run one after the other, give
the models and results that may be found afterwards. Whatever else is found is a mixture. Nothing here starts a thread or opens
MLflow before it forks.
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

from deconvnet.tracking.registry import REJECTED
from infra.storage import lock as lock_module
from workflows import cli, retrain, train_pipeline

for _module in ("inference.predictor", "tracking.mlflow_runs", "tracking.register", "training.local_trainer"):
    importlib.import_module(f"deconvnet.{_module}")  # those that a command imports late
importlib.import_module("workflows.operations.retraining")

AHEAD = multiprocessing.RawValue("d", 0.0)
"""Seconds by which the locks' clock is ahead of the machine's, in all processes."""
Command = tuple[Callable[[list[str]], None], str, tuple[str, ...]]
"""A command's `main`, its seed, and its other options."""
PAIRS: dict[str, tuple[Command, Command]] = {
    "train, train": ((train_pipeline.main, "0", ()), (train_pipeline.main, "5", ())),
    "train, retrain": ((train_pipeline.main, "0", ()), (retrain.main, "5", ("--force",))),
    "retrain, retrain": ((retrain.main, "0", ("--force",)), (retrain.main, "5", ("--force",))),
}
Found = set[tuple[object, ...]]


def start(command: Command, arguments: Sequence[str], workspace: Path, log: Path) -> int:
    """Start a command in a child process, whose locks go by `AHEAD`, and return its process id."""
    main, seed, more = command
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    lock_module.time = SimpleNamespace(time=lambda: time.time() + AHEAD.value)  # type: ignore[assignment]
    os._exit(cli.run(lambda: main([*arguments, "--workspace", str(workspace), "--seed", seed, *more])))


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
    pair: tuple[Command, Command], arguments: Sequence[str], folder: Path, chance: random.Random, usual: float
) -> list[int]:
    """Run two commands at the same time, and return their exit codes.

    Half of the times the two take turns at random. Otherwise the first is frozen at a random moment, its lock expires, the second
    begins, and the first goes on at another random moment.

    Args:
        pair: the commands.
        arguments: options of both.
        folder: folder of the workspace `w` and the logs.
        chance: source of the random moments.
        usual: seconds that a command takes when it runs alone.
    """
    pair = pair if chance.random() < 0.5 else pair[::-1]
    frozen = chance.random() < 0.5
    (folder / "kind").write_text("frozen" if frozen else "turns")
    first = start(pair[0], arguments, folder / "w", folder / "first.log")
    if frozen:
        time.sleep(chance.uniform(0, usual))
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGSTOP)
        AHEAD.value += 24 * 3600
        second = start(pair[1], arguments, folder / "w", folder / "second.log")
        deadline = time.monotonic() + chance.uniform(0, 1.3 * usual)
        while time.monotonic() < deadline and not ended(second):
            time.sleep(0.02)
        os.kill(first, signal.SIGCONT)
    else:
        time.sleep(chance.choice([0, chance.uniform(0, usual)]))
        second = start(pair[1], arguments, folder / "w", folder / "second.log")
        take_turns(first, second, chance)
    return [wait(first), wait(second)]


def digest(*files: Path) -> str:
    """Return a digest of the content of files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def workspace_results(workspace: Path) -> Found:
    """Return the digests of weights and results in each workspace and generation whose evaluation is complete."""
    found: Found = set()
    for record in [workspace / "stages/evaluate.json", *workspace.glob("generations/*/stages/evaluate.json")]:
        if record.exists():
            root = record.parent.parent
            weights = (digest(root / f"models/{stage}/model.safetensors") for stage in ("fcn8s", "stage1", "stage2"))
            found.add(("workspace", *weights, digest(root / "report/results.json")))
    return found


def registered(workspace: Path) -> tuple[Found, list[str]]:
    """Return what each registered version holds, and what is wrong with the registry.

    Returns:
        The seed, the digest of the weights and the mean IoUs of each version; and a sentence for each fault.
    """
    store, found, faults = workspace / "mlflow/mlflow.db", set[tuple[object, ...]](), list[str]()
    if not store.exists():
        return found, faults
    with closing(sqlite3.connect(store)) as database:
        if not database.execute("select 1 from sqlite_master where name = 'registered_model_aliases'").fetchone():
            return found, faults
        versions = database.execute("select version, run_id, source from model_versions where status = 'READY'").fetchall()
        tags: dict[int, dict[str, str]] = {version: {} for version, _, _ in versions}
        for version, key, value in database.execute("select version, key, value from model_version_tags"):
            tags.setdefault(version, {})[key] = value
        seeds = dict(database.execute("select run_uuid, value from params where key = 'seed'").fetchall())
        champion = database.execute("select version from registered_model_aliases where alias = 'champion'").fetchone()
    faults += [f"run {run} has {n} versions" for run, n in Counter(run for _, run, _ in versions).items() if n > 1]
    if champion and tags[champion[0]].get("verdict") == REJECTED:
        faults.append(f"the champion, version {champion[0]}, was not promoted")
    for version, run, source in versions:
        models = Path(source.removeprefix("file://")) / "artifacts/ensemble"
        weights = digest(models / "fcn8s/model.safetensors", models / "deconvnet/model.safetensors")
        results = sorted(item for item in tags[version].items() if item[0].startswith("mean_iou"))
        found.add(("version", seeds.get(run), weights, *results))
    return found, faults


def one_after_the_other(pair: Sequence[Command], arguments: Sequence[str], folder: Path) -> tuple[Found, float]:
    """Run commands one after the other, and return what is found afterwards and the seconds that the slowest took."""
    folder.mkdir()
    slowest = 0.0
    found: Found = set()
    for number, command in enumerate(pair):
        begun = time.monotonic()
        code = wait(start(command, arguments, folder / "w", folder / f"{number}.log"))
        assert code == 0, (folder / f"{number}.log").read_text()
        slowest = max(slowest, time.monotonic() - begun)
        versions, faults = registered(folder / "w")
        assert not faults, faults
        found |= versions | workspace_results(folder / "w")
    return found, slowest


def check(folder: Path, allowed: Found, said: str) -> None:
    """Raise AssertionError if the workspace of a folder or its registry holds a mixture."""
    versions, faults = registered(folder / "w")
    strange = (versions | workspace_results(folder / "w")) - allowed
    assert not faults, f"{said}: {faults}"
    assert not strange, f"{said}: {strange} is neither of the two runs'"


def main(arguments: list[str], folder: Path, rounds: int, seed: int) -> None:
    """Let pairs of commands contend for a workspace, and print how often each pair of exit codes was seen."""
    allowed: dict[str, Found] = {}
    usual = 0.0
    for number, (name, pair) in enumerate(PAIRS.items()):
        both = [one_after_the_other(order, arguments, folder / f"{number}{i}") for i, order in enumerate([pair, pair[::-1]])]
        allowed[name] = both[0][0] | both[1][0]
        usual = max(usual, both[0][1])
    seen: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for number in range(rounds):
        chance = random.Random(f"{seed} {number}")
        name = list(PAIRS)[number % len(PAIRS)]
        place = folder / f"round{number}"
        place.mkdir()
        codes = contend(PAIRS[name], arguments, place, chance, usual)
        kind = (place / "kind").read_text()
        said = f"round {number}, {name}, {kind}: {codes} in {place}"
        assert set(codes) <= ({0, 3} if kind == "turns" else {0, 2, 3, 75}), said
        assert 0 in codes, said
        check(place, allowed[name], said)
        if number % 4 == 0:  # run again, each command completes
            AHEAD.value += 24 * 3600
            for main_, own_seed, _ in PAIRS[name]:
                code = wait(start((main_, own_seed, ()), arguments, place / "w", place / "again.log"))
                assert code == 0, f"{said}: run again {code}: {(place / 'again.log').read_text()}"
            check(place, allowed[name], f"{said}, run again")
        seen[name, kind, tuple(sorted(codes))] += 1
        shutil.rmtree(place)
        print(said, flush=True)
    print(json.dumps([[*key[:2], list(key[2]), times] for key, times in sorted(seen.items())]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
