"""Two commands at the same time: in any order of their reads and writes one leaves, or both complete; never a mixture.

The pipelines here are the real ones (locks, stages, tables, generations, the folder of predictions) with stages whose results are
a few numbers. The commands run in threads, and a scheduler with a seed decides before every access to the storage which goes on.
"""

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from infra import storage
from infra.errors import Interrupted, UserError
from infra.runtime.stages import Stage, read_record
from infra.storage import lock as lock_module
from infra.storage import tables
from infra.storage.guarded import LockGuard
from infra.storage.lock import Lock, Locked, hold_lock
from workflows.pipelines import generations
from workflows.pipelines.base import BasePipeline
from workflows.pipelines.generations import Generation
from workflows.pipelines.workspace import Workspace, hold_workspace
from workflows.settings import Settings

ACCESSES = ("compare_and_swap", "read_bytes", "read_json", "write_bytes", "write_json", "remove", "exists", "list_files")
CHAMPION = "champion.json"
G0, G1 = "20261101-000000", "20261102-000000"
"""Names of generations, which share the tables of the workspace around them."""


class Scheduler:
    """Lets one thread run at a time, and chooses another at random before each access to the storage."""

    def __init__(self, seed: int, freezes: bool) -> None:
        self.random = random.Random(seed)
        self.now = 1e9
        self._freezes, self._frozen = freezes, ""
        self._turn = {}
        self._paused = threading.Semaphore(0)

    def access(self) -> None:
        """Wait for the next turn; other threads, such as the test's own, go on at once."""
        if (turn := self._turn.get(threading.current_thread().name)) is not None:
            self._paused.release()
            turn.acquire()

    def run(self, commands: dict[str, Callable[[], None]]) -> dict[str, int]:
        """Run commands to their end, and return their exit codes."""
        codes: dict[str, int] = {}

        def work(name: str) -> None:
            self._turn[name].acquire()
            codes[name] = exit_code(commands[name])
            self._paused.release()

        self._turn = {name: threading.Semaphore(0) for name in commands}
        for name in commands:
            threading.Thread(target=work, args=(name,), name=name, daemon=True).start()
        favourite = self.random.choice([0.5, 0.2, 0.05, 0.8, 0.95])
        while left := [name for name in commands if name not in codes]:
            if self._freezes and not self._frozen and self.random.random() < 0.02:
                # The process is stopped for so long that its lock expires. The other one works until its end meanwhile.
                self._frozen, self.now = self.random.choice(left), self.now + 3600
            awake = [name for name in left if name != self._frozen] or left
            name = awake[0] if len(awake) == 1 or self.random.random() < favourite else awake[-1]
            self._turn[name].release()
            self._paused.acquire()
        self._turn = {}
        return codes


def exit_code(command: Callable[[], None]) -> int:
    """Run a command, and return the exit code that `workflows.cli.run` would return; 1 for a bug."""
    try:
        command()
    except Exception as error:
        codes = {Locked: 3, Interrupted: 75, UserError: 2, OSError: 2}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    return 0


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bool], Scheduler]]:
    """Make a scheduler, with whose turns all accesses to the storage take place."""
    current: list[Scheduler] = []
    for name in ACCESSES:
        real = getattr(storage, name)

        def patched(*args: Any, real: Callable[..., Any] = real) -> Any:
            current[-1].access()
            return real(*args)

        monkeypatch.setattr(storage, name, patched)
    monkeypatch.setattr("workflows.pipelines.workspace.WAIT_SECONDS", 0)
    monkeypatch.setattr(lock_module, "time", SimpleNamespace(time=lambda: current[-1].now))

    def make(seed: int, freezes: bool) -> Scheduler:
        current.append(Scheduler(seed, freezes))
        return current[-1]

    yield make


class Tiny(BasePipeline):
    """A pipeline of which every result is made of its seed, so that a mixture of two seeds is recognised."""

    def __init__(self, workspace: str, seed: int, registry: str, lock: Lock | None = None) -> None:
        self.seed, self.registry = seed, registry
        super().__init__(Settings.model_construct(**{**vars(BASE), "workspace": workspace, "seed": seed}))
        self.locks += [lock] if lock else []

    def _stages(self) -> list[Stage]:
        images, model = {"images": self.table_folder("images")}, storage.join(self.model("stage2"), "model.json")
        results = self.report("results.json")
        return [
            Stage("prepare", "", 1, {"seed": self.seed}, (), (), self._make_images, images),
            Stage("stage2", "", 1, {"seed": self.seed}, ("prepare",), (model,), self._make_model),
            Stage("evaluate", "", 1, {}, ("prepare", "stage2"), (results,), self._make_results),
            Stage("register", "", 1, {}, ("evaluate", "stage2"), (), self._register),
        ]

    def _make_images(self, fingerprint: str) -> dict[str, Any]:
        schema = pa.schema([pa.field("image_id", pa.string()), pa.field("seed", pa.int64())])
        table = self.table_folder("images")
        parts = [tables.write_part(table, fingerprint, i, [{"image_id": str(i), "seed": self.seed}], schema) for i in range(2)]
        made = tables.commit(table, fingerprint, parts, keep_earlier=True)
        self.use_version("images", made.version)
        return {"tables": {"images": made.version}}

    def _make_model(self, fingerprint: str) -> dict[str, Any]:
        seeds = [row["seed"] for row in tables.iter_rows(self.images)]
        storage.write_json(storage.join(self.model("stage2"), "weights.json"), seeds)
        content = {"fingerprint": fingerprint, "seed": self.seed, "weights": seeds}
        storage.write_json(storage.join(self.model("stage2"), "model.json"), content)
        return {}

    def _read_model(self) -> list[int]:
        """The seed of the model and those of its weights. As for the real one, the two files must belong together."""
        model = storage.read_json(storage.join(self.model("stage2"), "model.json"))
        if (weights := storage.read_json(storage.join(self.model("stage2"), "weights.json"))) != model["weights"]:
            raise UserError("the model is damaged")
        return [model["seed"], *weights]

    def _make_results(self, fingerprint: str) -> dict[str, Any]:
        seeds = [row["seed"] for row in tables.iter_rows(self.images)]
        storage.write_json(self.report("results.json"), {"all": [*seeds, *self._read_model()]})
        return {}

    def _register(self, fingerprint: str) -> dict[str, Any]:
        content = {
            "seed": self.seed,
            "model": self._read_model(),
            "results": storage.read_json(self.report("results.json"))["all"],
        }
        self.locks[0].still_held()
        self.locks[0].check()
        number = 1
        while not storage.compare_and_swap(storage.join(self.registry, f"{number}.json"), None, json.dumps(content).encode()):
            number += 1
        return {"version": number}


BASE = Settings(executor="local", tracking={"enabled": False}, cluster={"num_cpus": 1})


def train(workspace: Path, seed: int) -> None:
    Tiny(str(workspace), seed, str(workspace / "registry")).run("tiny")


def retrain(workspace: Path, seed: int, name: str) -> None:
    """As `workflows.operations.retraining.retrain`: a generation is resumed or begun, and its version becomes the champion."""
    base = str(workspace)
    with hold_workspace(base, "retrain.py") as lock:
        unfinished = [each for each in generations.read_all(base) if not each.finished]
        generation = unfinished[-1] if unfinished else Generation(name, None, None)
        pipeline = Tiny(generations.folder(base, generation.name), seed, str(workspace / "registry"), lock)
        pipeline.command = "retrain.py"
        generations.write(base, generation)
        version = pipeline.run("tiny")["register"].summary["version"]
        assert lock.still_held() or not lock.check()
        storage.write_json(storage.join(base, CHAMPION), {"version": version, "fence": lock.fence})
        lock.still_held()
        lock.check()
        generations.finish(base, generation, {"version": version, "champion": version})
        generations.prune_tables(base, {}, lock)


def predict(output: Path, version: int) -> None:
    """As `workflows.operations.prediction`: the masks of all images by one version, then the table of them."""
    with hold_lock(storage.join(str(output), "_lock"), "predict.py") as lock:
        guard = LockGuard(lock.uri, lock.token)
        for name in ("predict.json", *(f"masks/{image}.json" for image in range(3)), "table.json"):
            guard.write_json(storage.join(str(output), name), version)


def check_workspace(workspace: Path, finished: bool) -> None:
    """All results are of one seed, up to the last stage that is complete."""
    root = Workspace(str(workspace))
    if finished:
        assert read_record(root.root, "register"), "the run that completed has left no record"
    if not read_record(root.root, "evaluate"):
        return
    found = storage.read_json(root.report("results.json"))["all"]
    assert len(found) == 5 and len(set(found)) == 1, found


def check_registry(workspace: Path) -> None:
    """Each version's weights, results and seed belong together."""
    for version in (workspace / "registry").glob("*.json"):
        content = json.loads(version.read_text())
        every = {content["seed"], *content["model"], *content["results"]}
        assert len(every) == 1 and len(content["results"]) == 5, (version.name, content)


PAIRS: dict[str, Callable[[Path], dict[str, Callable[[], None]]]] = {
    "train, train": lambda folder: {"one": partial(train, folder, 0), "two": partial(train, folder, 5)},
    "train, retrain": lambda folder: {"one": partial(train, folder, 0), "two": partial(retrain, folder, 5, G1)},
    "retrain, retrain": lambda folder: {"one": partial(retrain, folder, 0, G0), "two": partial(retrain, folder, 5, G1)},
    "train in a generation, retrain": lambda folder: {
        "one": partial(train, folder / "generations" / G1, 0),
        "two": partial(retrain, folder, 5, G1),
    },
    "predict, predict": lambda folder: {"one": partial(predict, folder, 1), "two": partial(predict, folder, 2)},
    "train, predict": lambda folder: {"one": partial(train, folder, 0), "two": partial(predict, folder / "out", 2)},
}


@pytest.mark.parametrize("freezes", [False, True], ids=["awake", "frozen"])
@pytest.mark.parametrize("pair", list(PAIRS))
def test_two_commands_never_mix_their_results(scheduled, tmp_path: Path, pair: str, freezes: bool) -> None:
    check_schedules(scheduled, tmp_path, pair, freezes, range(8))


@pytest.mark.slow
@pytest.mark.parametrize("freezes", [False, True], ids=["awake", "frozen"])
@pytest.mark.parametrize("pair", list(PAIRS))
def test_two_commands_never_mix_their_results_in_more_schedules(scheduled, tmp_path: Path, pair: str, freezes: bool) -> None:
    check_schedules(scheduled, tmp_path, pair, freezes, range(8, 120))


def check_schedules(
    scheduled: Callable[[int, bool], Scheduler], tmp_path: Path, pair: str, freezes: bool, seeds: Iterable[int]
) -> None:
    """Run two commands once for each seed, and check what they leave behind; then run each of them alone, which must work."""
    outcomes = set()
    for seed in seeds:
        folder = tmp_path / str(seed)
        scheduler = scheduled(seed, freezes)
        codes = scheduler.run(PAIRS[pair](folder))
        said = f"{pair}, seed {seed}: {codes}"
        outcomes.add(tuple(sorted(codes.values())))
        if not freezes:
            assert sorted(codes.values()) in ([0, 0], [0, 3]), said
        assert set(codes.values()) <= {0, 2, 3, 75}, said
        check_registry(folder)
        check_registry(folder / "generations" / G1)
        if "predict, predict" in pair and 0 in codes.values():
            made = {storage.read_json(str(path)) for path in [folder / "table.json", *folder.glob("masks/*")]}
            assert len(made) == 1, said
        for workspace in (folder, *folder.glob("generations/*")):
            check_workspace(workspace, finished=workspace == folder and codes["one"] == 0 and pair.startswith("train,"))
        # Whatever happened, the same commands lead to results that belong together.
        for name, command in PAIRS[pair](folder).items():
            scheduled(seed, False)
            scheduler.now += 7200
            assert exit_code(command) == 0, f"{said}; {name} again"
        check_registry(folder)
        for workspace in (folder, *folder.glob("generations/*")):
            check_workspace(workspace, finished=False)
        if (folder / CHAMPION).exists():
            assert (folder / "registry" / f"{storage.read_json(str(folder / CHAMPION))['version']}.json").exists()
        shutil.rmtree(folder)
    assert outcomes - {(0, 0)} or pair == "train, predict", "the schedules never met"


@pytest.mark.parametrize("leaves", [True, False])
def test_a_retraining_waits_for_one_that_has_lost_its_turn_but_still_works_in_the_generation(tmp_path, monkeypatch, leaves):
    """Otherwise both would give up: the one that woke up too late, and the one that found it in the generation."""
    base, stopped = str(tmp_path), []
    late = hold_lock(storage.join(generations.folder(base, G1), "workspace.lock"), "retrain.py")
    late.__enter__()

    def sleep(seconds: float) -> None:
        stopped.append(True)
        if leaves:
            late.__exit__(None, None, None)

    # In the module alone: other threads of this process sleep, too.
    monkeypatch.setattr("workflows.pipelines.workspace.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with hold_workspace(base, "retrain.py") as lock:
        pipeline = Tiny(generations.folder(base, G1), 0, str(tmp_path / "registry"), lock)
        pipeline._stop_requested = lambda: len(stopped) == 2
        if leaves:
            assert pipeline.run("tiny")["register"].summary == {"version": 1}
        else:
            with pytest.raises(Locked):
                pipeline.run("tiny")
    assert len(stopped) == (1 if leaves else 2)
