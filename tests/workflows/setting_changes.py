"""Another value for each setting, and what must follow from it: for the tests that settings reach what they name."""

import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from deconvnet.datasets.palette import GENERATED_CLASSES
from infra import storage
from infra.settings import Section
from infra.storage import tables

ANOTHER = {
    "data.root": "FOLDER/voc",
    "data.classes": ("background", "hoop", "square", "triangle", "star", "disc"),
    "init.from": "FOLDER/trained",
    "proposals.edge_model": "FOLDER/other forest.yml.gz",
    "model.vgg16": "FOLDER/other vgg.npz",
    "model.input_size": 256,
    "model.fcn_input_size": 544,
    "segment.proposals": 51,
    "notify.url": "https://host/secret",
    "notify.metrics_to": "http://host:9091",
    "cluster.data_nodes": "pool=cpu",
    "cluster.training_nodes": "pool=gpu",
    "proposals.window_sizes": (1.0, 0.25),
    "compute.min_workers": 1,
    "train.stage1.micro_batch": 2,
    "train.stage2.micro_batch": 2,
    "train.fcn8s.freeze": ("conv1",),
    "train.stage1.freeze": ("conv1",),
    "train.stage2.freeze": ("conv1",),
}
"""Other values of settings for which `candidates` has none."""

NEEDS = {
    "data.classes": {"data.root": "FOLDER/voc"},
    "data.background": {"data.root": "FOLDER/voc"},
    "data.train_split": {"data.root": "FOLDER/voc"},
    "data.val_split": {"data.root": "FOLDER/voc"},
    "data.test_split": {"data.root": "FOLDER/voc"},
    "proposals.edges": {"proposals.edge_model": None},
}
"""Settings that are allowed, or have an effect, only beside others."""


class Called(Exception):
    """Ends a stage at the call of the function that does its work."""


def nearest(name: str, table: dict[str, str]) -> str | None:
    """A table's entry of a setting, of its field alone ("*.field"), or of the nearest section; None if there is none."""
    keys = (name, f"*.{name.rpartition('.')[2]}", *(name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)))
    return next((table[key] for key in keys if key in table), None)


def expected_stages(name: str, repeated: dict[str, str], without_effect: dict[str, str]) -> set[str]:
    """The stages of the nearest entry of a setting; none without effect."""
    found = nearest(name, dict.fromkeys(without_effect, "") | repeated)
    assert found is not None, f"{name} is in no table"
    return set(found.split())


def write_files(made: Path) -> Path:
    """Write the files that settings name, of different contents, and return their folder."""
    for name in ("vgg.npz", "other vgg.npz", "forest.yml.gz", "other forest.yml.gz"):
        (made / name).write_text(name)
    for name, architecture in (("stage2", "deconvnet"), ("fcn8s", "fcn8s")):
        for start in ("trained", "w"):
            meta = {"classes": GENERATED_CLASSES, "architecture": architecture, "fingerprint": start, "sha256": start}
            storage.write_json(f"{made}/{start}/models/{name}/model.json", meta)
    for workspace in ("w", "wx"):
        for each in "ab":  # versions 0 and 1 of the table `images`
            extra = {"classes": list(GENERATED_CLASSES), "background": "first", "digest": each, "counts": {}}
            tables.commit(f"{made}/{workspace}/images", 64 * each, [], extra, keep_earlier=True)
    for split in ("train", "trainx", "val", "valx", "x"):
        (made / "voc" / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (made / "voc" / f"ImageSets/Segmentation/{split}.txt").write_text(f"{split}\n")
        for kind in ("JPEGImages", "SegmentationClass"):
            (made / "voc" / kind).mkdir(exist_ok=True)
            (made / "voc" / kind / f"{split}.{'jpg' if kind == 'JPEGImages' else 'png'}").write_text("no image, but none is read")
    return made


Kind = TypeVar("Kind", bound=Section)


def nested(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name as nested dicts, with the folder's path in place of FOLDER."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        into = out
        for section in sections:
            into = into.setdefault(section, {})
        into[key] = value.replace("FOLDER", str(folder)) if isinstance(value, str) else value
    return out


def value_of(settings: Section, name: str) -> Any:
    found: Any = settings
    for part in name.replace("init.from", "init.from_").split("."):
        found = getattr(found, part)
    return found


def candidates(value: Any, annotation: Any) -> Iterator[Any]:
    """Other values of the kind of a setting; which are allowed is tried."""
    options = [each for each in get_args(annotation) if isinstance(each, str)]
    if options:
        yield from (each for each in options if each != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value - 1, value * 0.75, value + 0.25)
    elif isinstance(value, str):
        yield f"{value}x"
    else:
        yield from (1, 0.5, True, "x")


def changed(
    folder: Path,
    name: str,
    annotation: Any,
    make: Callable[[Path, dict[str, Any]], Kind],
    needed: dict[str, dict[str, Any]] = NEEDS,
) -> tuple[Kind, Kind]:
    """Settings that `make` makes of those that are needed, and the same with another value of one setting."""
    needs = needed.get(name, {})
    before = make(folder, needs)
    values = [ANOTHER[name]] if name in ANOTHER else candidates(value_of(before, name), annotation)
    for value in values:
        try:
            after = make(folder, {**needs, name: value})
        except ValidationError:
            continue
        if value_of(after, name) != value_of(before, name):
            return before, after
    raise AssertionError(f"no other value of {name} is allowed: add one to ANOTHER")


Record = Callable[..., Callable[..., Any]]


def plain(value: Any) -> bool:
    """Whether an argument is made of values, so that its text tells it from others."""
    return isinstance(value, str | int | float | tuple | list | dict | Path | Section | None) or is_dataclass(value)


def recording() -> tuple[list[str], Record]:
    """A list of calls as text, and a maker of functions that record their calls there by name, and return a result or end all."""
    calls: list[str] = []

    def record(name: str, result: Any = None, ends: bool = False) -> Callable[..., Any]:
        def recorded(*given: Any, **named: Any) -> Any:
            kept = [*map(repr, filter(plain, given)), *(f"{key}={value!r}" for key, value in named.items() if plain(value))]
            calls.append(re.sub("[0-9a-f]{32}", "TOKEN", f"{name}({', '.join(kept)})"))
            if ends:
                raise Called
            return result

        return recorded

    return calls, record
