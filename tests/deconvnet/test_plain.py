"""The runner for a bare machine: without the modules such a machine lacks, stopped and gone on with, on the pipeline's batches."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deconvnet import narrow
from deconvnet.bare_run import Run
from deconvnet.checkpoints import load_model
from deconvnet.feeding import Feed, open_examples, plain_batches
from deconvnet.networks import VGG16_LAYERS
from deconvnet.packed import SETTINGS, seal
from deconvnet.packing import write_tables
from deconvnet.plain import main
from deconvnet.weights import write_vgg16
from infra import tables
from infra.errors import Interrupted, UserError
from infra.images import encode_jpeg, encode_mask
from proposals.mine import mine_examples
from proposals.settings import ExampleSettings
from tests.conftest import ROOT
from workflows.pack import SECTIONS
from workflows.settings import QUICKSTART, as_dict, load

MISSING = ("ray", "mlflow", "pydantic", "boto3")
CLASSES = ("background", "red", "green")
STEPS = 3
SIZE = 32
SMALL = {
    "segment.proposals": "4", "model.width": "0.05", "model.fcn_width": "0.05", "model.fcn_input_size": "64",
    **{f"train.{stage}.{name}": value for stage in ("fcn8s", "stage1", "stage2")
       for name, value in (("max_steps", str(STEPS)), ("batch", "4"), ("bn_batches", "1"), ("log_every", "1"))},
}  # fmt: skip


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command takes these signals for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Tables such as the pipeline's, their pack, and its content before it was sealed."""
    folder = tmp_path_factory.mktemp("plain")
    s = load(str(QUICKSTART), {**SMALL, "workspace": str(folder)})
    images, proposals = made_up_tables(folder)
    content = folder / "content"
    write_tables(images, proposals, str(content), s.examples, s.segment)
    settings: dict[str, Any] = {"dataset": "made up", "classes": CLASSES, **as_dict(s, SECTIONS)}
    settings["model"]["vgg16"] = "vgg16.npz"
    (content / SETTINGS).write_text(json.dumps(settings))
    write_vgg16(str(content / "vgg16.npz"), random_vgg16(), s.model.convention)
    (folder / "pack").mkdir()
    seal(content, folder / "pack")
    return folder


def made_up_tables(folder: Path) -> tuple[str, str]:
    """Photographs of two rectangles in two parts, every third of val and of dev; 300 boxes each, most of them far from either."""
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for i in range(18):
        image = rng.integers(90, 130, (64, 80, 3), np.uint8)
        masks = np.zeros((2, 64, 80), np.uint8)
        near = []
        for number, x in enumerate(rng.integers(2, 12, 2).tolist(), 1):
            left, right, top, bottom = (number - 1) * 40 + x, number * 40 - 4, 10 + x, 50
            image[top:bottom, left:right, number - 1] = 230
            masks[:, top:bottom, left:right] = number
            near.append(np.array([left, top, right, bottom]) + rng.integers(-4, 5, (5, 4)))
        corner = rng.integers(0, 40, (290, 2))
        found = np.concatenate([np.hstack([corner, corner + rng.integers(4, 24, (290, 2))]), *near]).astype(np.float32)
        common = {"image_id": f"{i:03}", "height": 64, "width": 80}
        split = ("train", "train", "train", "train", "dev", "val")[i % 6]
        class_mask, object_mask = (encode_mask(mask) for mask in masks)
        rows.append({**common, "split": split, "image": encode_jpeg(image), "class_mask": class_mask, "object_mask": object_mask})
        boxes.append({**common, "boxes": found.tolist(), "scores": np.linspace(1, 0, 300).tolist()})
    for name, schema, every in (("images", tables.IMAGES, rows), ("proposals", tables.PROPOSALS, boxes)):
        uri = str(folder / name)
        halves = (every[:10], every[10:])
        parts = [tables.write_part(uri, "a" * 16, k, half, schema, rows_per_group=4) for k, half in enumerate(halves)]
        tables.commit(uri, "a" * 16, parts)
    return str(folder / "images"), str(folder / "proposals")


def random_vgg16() -> dict[str, torch.Tensor]:
    """As wide as the paper's, in half precision."""
    generator = torch.Generator().manual_seed(0)
    found, inputs = {}, 3
    for block, layers in enumerate(VGG16_LAYERS, 1):
        for i, outputs in enumerate(layers, 1):
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            found |= {f"conv{block}_{i}.weight": weight.half(), f"conv{block}_{i}.bias": torch.zeros(outputs)}
            inputs = outputs
    return found


def one_by_one(units: Mapping[int, Any], work: Callable[[int, Any], Any], **_: Any) -> Iterator[tuple[int, Any]]:
    for index, unit in units.items():
        yield index, work(index, unit)


def first_batch(table: Path, size: int, split: str | None = None, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return next(plain_batches(Feed.of(open_examples(str(table), size, split), count, 1, 0), 0, 0, 1))


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has none of `MISSING`."""
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in MISSING)]
    lines += ["import cv2", "vars(cv2).pop('ximgproc', None)"]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}


def test_a_bare_machine_trains_what_the_pipeline_would_and_goes_on_where_it_was_stopped(
    made, bare, tmp_path, monkeypatch, capsys
):
    pack, out = made / "pack", tmp_path / "out"
    assert main([str(pack), "--out", str(out), "--minutes", "0"]) == 75
    assert capsys.readouterr().out.endswith("NOT FINISHED: run the same command again to go on\n")
    assert not (out / "models").exists()

    # Stopped in the middle of a training, at a step that is no checkpoint by itself.
    monkeypatch.setattr(narrow, "SAMPLES", 2000)
    curve = out / "curves" / "fcn8s.jsonl"
    with pytest.raises(Interrupted):
        Run(pack, out, [], "cpu", 1, lambda: curve.exists() and curve.read_text().count("\n") == 2).run(["fcn8s"])
    assert [p.name for p in out.glob("train/fcn8s-*/*")] == ["000000002"]

    command = [sys.executable, "-m", "deconvnet.plain", str(pack), "--out", str(out), "--device", "cpu", "--cores", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd="/", env=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("FINISHED\n") and "fcn8s_start: stands" in done.stdout
    assert done.stdout.count("step 1/3") == 2 and done.stdout.count("step 3/3, epoch") > 3  # FCN-8s went on at step 3
    assert "stage1_start: VGG-16 made narrower" in done.stdout and "conv5_3: 24 of 512 channels" in done.stdout
    for name in ("fcn8s", "stage1", "stage2"):
        lines = [json.loads(line) for line in (out / "curves" / f"{name}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1)), name
        model, meta = load_model(str(out / "models" / name))
        assert meta["extra"]["steps"] == STEPS and model.num_classes == len(meta["classes"])
    assert not list(out.glob("train/*"))
    for report in (out / "report", out / "report" / "dev"):
        results = json.loads((report / "results.json").read_text())
        assert results["images"] == 3 and all(row["mean_iou"] is not None for row in results["rows"].values())
        assert "| EDeconvNet+CRF | " in (report / "results.md").read_text()
        assert (report / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report" / "index.html").read_text()
    assert "made up val" in page and '<th scope="row">stage2</th>' in page and '<th scope="row">train.stage2.lr</th>' in page

    for number in (1, 2):
        table = tmp_path / f"stage{number}"
        sources = str(made / "images"), str(made / "proposals") if number == 2 else None
        settings = ExampleSettings(**json.loads((made / "content" / SETTINGS).read_text())["examples"])
        mine_examples(number, *sources, str(table), settings, SIZE, fingerprint="c" * 16, each=one_by_one)
        of_all, of_pack = first_batch(table, SIZE, count=16), first_batch(out / "examples" / table.name, SIZE, count=16)
        assert all(np.array_equal(a, b) for a, b in zip(of_all, of_pack, strict=True))


def test_fcn8s_sees_the_pipeline_s_photographs(made):
    for split in ("train", "dev"):
        first, second = (first_batch(place, 64, split) for place in (made / "images", made / "content" / "images"))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_training_starts_from_what_was_made_narrower(made, tmp_path, monkeypatch):
    monkeypatch.setattr(narrow, "SAMPLES", 2000)
    out = tmp_path / "out"
    Run(made / "pack", out, ["train.fcn8s.lr=1e-9", "train.fcn8s.max_steps=1"], "cpu", 1, lambda: False).run(["fcn8s"])
    with np.load(out / "start" / "fcn8s.npz") as start:
        trained = load_model(str(out / "models" / "fcn8s"))[0].state_dict()["conv3.2.conv.weight"]
        assert np.allclose(trained, start["conv3_2.weight"], atol=1e-5)
    asked = iter([False, True])  # before the stage, after a layer
    with pytest.raises(Interrupted, match="stopped in fcn8s_start, which will begin anew"):
        Run(made / "pack", tmp_path / "other", [], "cpu", 1, lambda: next(asked)).run(["fcn8s"])
    wide = Run(made / "pack", tmp_path / "wide", ["model.width=1.0", "model.fcn_width=1.0"], "cpu", 1, lambda: True)
    with pytest.raises(Interrupted, match=r"stopped before fcn8s$"):
        wide.run(["fcn8s"])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda pack: (pack / "pack.json").unlink(), "is not a whole pack: it has no pack.json"),
        (lambda pack: next(pack.glob("images/*/*.parquet")).unlink(), "it lacks images/"),
        (lambda pack: next(pack.glob("images/*/*.parquet")).write_bytes(b"PAR1"), "is damaged"),
        (lambda pack: (pack / "pack.json").write_text("{"), "is damaged"),
    ],
)
def test_a_damaged_pack_is_one_sentence(made, tmp_path, capsys, harm, sentence):
    pack = tmp_path / "pack"
    shutil.copytree(made / "pack", pack, ignore=shutil.ignore_patterns("vgg16*"))
    harm(pack)
    assert main([str(pack), "--out", str(tmp_path / "out"), "--cores", "1"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said and str(pack) in said


def test_what_can_t_be_set_is_refused(made, tmp_path):
    for change, sentence in (
        ("train.stage1.max_step=3", "did you mean train.stage1.max_steps"),
        ("train.stage1.batch=many", "a number is needed"),
        ("examples.min_iou=0.3", "pack again"),
    ):
        with pytest.raises(UserError, match=sentence):
            Run(made / "pack", tmp_path / "out", [change], "cpu", 1, lambda: False)
    changes = ["train.stage1.max_steps=7", "examples.balance=false"]
    changed = Run(made / "pack", tmp_path / "out", changes, "cpu", 1, lambda: False)
    assert changed.settings.train.stage1.max_steps == 7 and changed.settings.examples.balance is False
    assert main([str(made / "pack"), "--out", str(tmp_path / "out"), "--only", "stage3"]) == 2


def test_a_part_holds_the_best_boxes_and_those_of_objects(made):
    every = {row["image_id"]: row for row in tables.iter_rows(str(made / "proposals"))}
    kept = {row["image_id"]: row for row in tables.iter_rows(str(made / "content" / "proposals"))}
    assert kept.keys() == every.keys()
    for name, row in kept.items():
        assert row["boxes"][:200] == every[name]["boxes"][:200] and len(row["boxes"]) == len(row["scores"])
    assert 200 < max(len(row["boxes"]) for row in kept.values()) < 300
