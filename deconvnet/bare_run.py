"""The stages of `deconvnet.plain`: crops, the three trainings, the five results, in one process (and some for the crops)."""

import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import torch

from deconvnet import checkpoints, pictures, training_history
from deconvnet.bare_settings import changed, section
from deconvnet.building import build_network, initialise, width_of
from deconvnet.code_version import code_version
from deconvnet.curves import Curve, progress
from deconvnet.evaluation import evaluate_here
from deconvnet.evaluation_report import report_files
from deconvnet.feeding import DevSet, Feed, PlainShard, open_examples
from deconvnet.inference import fast_bf16
from deconvnet.narrow_job import make_narrow
from deconvnet.packed import SETTINGS, unpack
from deconvnet.report_facts import gather
from deconvnet.report_page import PAGE, page
from deconvnet.segmenter import Segmenter, segmenter_options
from deconvnet.training import State, train
from infra import storage, tables
from infra.errors import Interrupted, UserError
from infra.pool import processes
from infra.stages import Record, Stage, Stages
from proposals.mine import mine_examples

CHECKPOINT_SECONDS = 300.0
"""Between checkpoints: one of the full-size network is 2 GB, and took 13 s to write."""


class Run:
    """A pack, and the folder of what is made of it."""

    def __init__(
        self, pack: Path, out: Path, changes: Sequence[str], device: str | None, cores: int, should_stop: Callable[[], bool]
    ) -> None:
        """Raises UserError where `pack` is not whole or a change can't be made."""
        self.out, self.cores, self.should_stop = out.resolve(), cores, should_stop
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; leave it out, or take cpu")
        self.pack = self.out / "pack"
        storage.check_writable(str(self.out))
        self.key = unpack(pack, self.pack)
        self.values = changed(storage.read_json(str(self.pack / SETTINGS)), changes)
        self.settings = section(self.values)
        if name := self.settings.model.vgg16:
            self.settings.model.vgg16 = str(self.pack / name)
        self.images, self.proposals = str(self.pack / "images"), str(self.pack / "proposals")
        self.bf16 = self.settings.compute.bf16 and fast_bf16(self.device)
        cv2.setNumThreads(1)
        torch.set_num_threads(cores)

    def run(self, names: Collection[str]) -> None:
        """Do the stages `names` and what they need. Raises Interrupted where `should_stop` says yes."""
        stages = {stage.name: stage for stage in self._stages()}
        needed: set[str] = set()
        todo = list(names)
        while todo:
            needed.add(name := todo.pop())
            todo += stages[name].inputs

        def around(stage: Stage, fingerprint: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            if self.should_stop():
                raise Interrupted(f"stopped before {stage.name}")
            print(f"{stage.name}: {stage.title}", flush=True)
            return run()

        def skipped(stage: Stage, record: Record) -> None:
            print(f"{stage.name}: stands ({record.seconds:,.0f} s when it was made)", flush=True)

        chosen = [stage for name, stage in stages.items() if name in needed]
        Stages(str(self.out), chosen).run(around, skipped)

    def _stages(self) -> list[Stage]:
        v = self.values
        common = {"pack": self.key, "seed": v["seed"]}
        crops = {**common, "examples": v["examples"], "input_size": v["model"]["input_size"]}
        results = {**common, "segment": v["segment"]}
        done = tuple(str(self._examples(stage, split) / tables.COMMIT) for stage in (1, 2) for split in ("train", "dev"))
        return [
            Stage("examples", "training crops", 1, crops, (), done, self._mine),
            *self._narrowing("fcn8s"),
            self._training("fcn8s", "FCN-8s on whole photographs"),
            *self._narrowing("stage1", "examples"),
            self._training("stage1", "DeconvNet, stage 1: objects", "examples"),
            self._training("stage2", "DeconvNet, stage 2: proposals", "examples", "stage1"),
            Stage(
                "evaluate", "the five results", 1, results, ("fcn8s", "stage2"),
                (str(self.out / "report" / "results.json"),), self._evaluate,
            ),
        ]  # fmt: skip

    def _training(self, name: str, title: str, *inputs: str) -> Stage:
        v = self.values
        if self._start(name):
            inputs = (*inputs, f"{name}_start")
        # How often it is logged and saved changes nothing of what is learned.
        matters = {k: value for k, value in v["train"][name].items() if k not in ("checkpoint_every", "log_every")}
        settings = {"pack": self.key, "seed": v["seed"], "model": v["model"], "train": matters, "bf16": self.bf16}
        return Stage(name, title, 1, settings, inputs, (str(self._model(name) / "model.json"),), partial(self._train, name))

    def _narrowing(self, name: str, *inputs: str) -> list[Stage]:
        """The stage that makes `_start(name)`; none where it isn't needed."""
        if (start := self._start(name)) is None:
            return []
        settings = {"pack": self.key, "seed": self.values["seed"], "model": self.values["model"]}
        run = partial(self._narrow, name, start)
        return [Stage(f"{name}_start", "VGG-16 made narrower", 1, settings, inputs, (str(start),), run)]

    def _start(self, name: str) -> Path | None:
        """Where VGG-16 as narrow as the network of a training lies; None where that starts from anything else."""
        model = self.settings.model
        made = model.vgg16 and name != "stage2" and width_of(_architecture(name), model) < 1
        return self.out / "start" / f"{name}.npz" if made else None

    def _examples(self, stage: int, split: str) -> Path:
        return self.out / "examples" / f"stage{stage}{'' if split == 'train' else '_dev'}"

    def _model(self, name: str) -> Path:
        return self.out / "models" / name

    def _mine(self, fingerprint: str) -> dict[str, Any]:
        s, rows = self.settings, {}
        stages: tuple[Literal[1, 2], ...] = (1, 2)
        splits: tuple[Literal["train", "dev"], ...] = ("train", "dev")
        with processes(self.cores, self.should_stop) as each:
            for stage, split in ((a, b) for a in stages for b in splits):
                made = mine_examples(
                    stage, self.images, self.proposals if stage == 2 else None, str(self._examples(stage, split)),
                    s.examples, s.model.input_size, split=split, seed=s.seed, fingerprint=fingerprint, each=each,
                )  # fmt: skip
                rows[f"stage{stage} {split}"] = made.rows
        print("  " + ", ".join(f"{count:,} {name}" for name, count in rows.items()), flush=True)
        return rows

    def _narrow(self, name: str, out: Path, fingerprint: str) -> dict[str, Any]:
        s, fits = self.settings, {}
        table = self.images if name == "fcn8s" else str(self._examples(1, "train"))
        for layer, fit, line in make_narrow(_architecture(name), s.model, self.cores, table, str(out), s.seed):
            fits[layer] = fit
            print(f"  {line}", flush=True)
            if self.should_stop():
                raise Interrupted(f"stopped in {name}_start, which will begin anew")
        return {"fit": fits}

    def _train(self, name: str, fingerprint: str) -> dict[str, Any]:
        s = self.settings
        stage = getattr(s.train, name)
        whole = name == "fcn8s"
        size = s.model.fcn_input_size if whole else s.model.input_size
        table, dev_table = (self.images if whole else str(self._examples(int(name[-1]), split)) for split in ("train", "dev"))
        examples = open_examples(table, size, "train" if whole else None, stage.scale_jitter if whole else 0.0)
        shard = PlainShard(Feed.of(examples, stage.batch, 1, s.seed), threads=self.cores)
        total = min(stage.epochs * shard.steps_per_epoch, stage.max_steps or sys.maxsize)
        print(
            f"  {examples.total:,} examples an epoch, {shard.steps_per_epoch:,} steps of {stage.batch}, at most {total:,} steps"
        )

        torch.manual_seed(s.seed)
        model = build_network(_architecture(name), s.model, len(s.classes))
        kept = Checkpoints(self.out / "train" / f"{name}-{fingerprint[:16]}")
        if (state := kept.newest()) is None:
            chosen = copy(s.model)
            if start := self._start(name):
                chosen.vgg16 = str(start)
            initialise(model, chosen, s.classes, str(self._model("stage1")) if name == "stage2" else None)
        curve = Curve(self.out / "curves" / f"{name}.jsonl", int(state.values["step"]) if state else 0)

        def report(metrics: dict[str, float], now: State | None) -> None:
            print(f"  {progress(metrics, total)}", flush=True)
            if len(metrics) > 2:  # a stop tells where it is, and nothing new
                curve.add(metrics)
            if now is not None and (self.should_stop() or kept.due()):
                kept.save(now)

        outcome = train(
            model, shard, stage, num_classes=len(s.classes), seed=s.seed, dev=self._dev(dev_table, size, whole),
            device=self.device, bf16=self.bf16, state=state, report=report, should_stop=self.should_stop,
        )  # fmt: skip
        extra = {"stage": name, "seed": s.seed, **asdict(outcome)}
        checkpoints.save_model(model, str(self._model(name)), s.classes, extra)
        kept.clear()
        return asdict(outcome)

    def _dev(self, table: str, size: int, whole: bool) -> DevSet | None:
        """The dev examples, or None where there are none (a table may be empty)."""
        with suppress(UserError):
            return DevSet(open_examples(table, size, "dev" if whole else None), threads=self.cores)
        return None

    def _evaluate(self, fingerprint: str) -> dict[str, Any]:
        s = self.settings
        options = segmenter_options(s.segment, s.examples)
        segmenter = Segmenter.load(str(self._model("stage2")), str(self._model("fcn8s")), self.device.type, **options)
        means: dict[str, dict[str, Any]] = {}
        for split, report in (("dev", self.out / "report" / "dev"), ("val", self.out / "report")):
            found = evaluate_here(
                segmenter, self.images, self.proposals, split=split, classes=s.classes, dataset=f"{s.dataset} {split}",
                threads=self.cores if self.device.type == "cuda" else 1, should_stop=self.should_stop,
            )  # fmt: skip
            drawn = pictures.gallery(segmenter, self.images, self.proposals, s.classes, found.mean_iou)
            for file, data in report_files(found, drawn, options).items():
                storage.write_bytes(str(report / file), data)
            means[split] = {name: row["mean_iou"] for name, row in found.results["rows"].items()}
            told = ", ".join(f"{name} {value:.3f}" for name, value in means[split].items() if value is not None)
            print(f"  {split}: mean IoU {told}", flush=True)
        for file, data in training_history.drawn(training_history.of_folder(str(self.out / "curves"))).items():
            storage.write_bytes(str(self.out / "report" / file), data)
        known = gather(
            str(self.out), title=f"{s.dataset} · {self.out.name}", settings=self.values, code=code_version(), images=self.images
        )
        storage.write_bytes(str(self.out / "report" / PAGE), page(known).encode())
        return means


def _architecture(stage: str) -> str:
    return "fcn8s" if stage == "fcn8s" else "deconvnet"


class Checkpoints:
    """The newest checkpoint of one training, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved = time.monotonic()

    def newest(self) -> State | None:
        """What to go on from. A checkpoint that a killed run left half written is passed over."""
        for place in sorted(self._folder.glob("*"), reverse=True):
            with suppress(UserError):
                return State(*checkpoints.load_state(str(place)))
        return None

    def due(self) -> bool:
        """Whether the last one is old."""
        return time.monotonic() - self._saved >= CHECKPOINT_SECONDS

    def save(self, state: State) -> None:
        """Keep this one instead of what there was."""
        place = self._folder / f"{state.values['step']:09}"
        checkpoints.save_state(str(place), state.tensors, state.values)
        for other in self._folder.glob("*"):
            if other != place:
                shutil.rmtree(other)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """The training has come to its end."""
        shutil.rmtree(self._folder, ignore_errors=True)
