"""Each setting of the data changes the `images` table, or what is refused."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconvnet.datasets.images_table import data_folder, prepare_images
from deconvnet.settings import DataSettings, GeneratedSettings
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from tests.deconvnet.datasets.conftest import Layout, make_layout

GENERATED = {"root": None, "classes": ("background", "disc", "square", "triangle", "star", "hoop")}
IMAGES = "ids splits sizes objects"
EFFECTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "root": ("OTHER", {}, IMAGES),
    "train_split": ("more", {}, IMAGES),
    "val_split": ("more", {}, IMAGES),
    "test_split": ("more", {}, IMAGES),
    "classes": (("background", "thing"), {"max_rejects": 1}, f"{IMAGES} rejects"),
    "background": ("none", {}, "objects"),
    "dev_fraction": (0.5, {}, "splits"),
    "max_rejects": (0.1, {"max_pixels": 3000}, f"{IMAGES} rejects refused"),
    "max_pixels": (3000, {}, f"{IMAGES} rejects"),
    "limit": (2, {}, IMAGES),
    "generated.train": (5, GENERATED, IMAGES),
    "generated.val": (3, GENERATED, IMAGES),
    "generated.height": (48, GENERATED, "sizes objects"),
    "generated.width": (48, GENERATED, "sizes objects"),
}
"""For each setting another value, the settings beside which it has an effect, and what is different then."""


Prepare = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a large image, an object of class 2, and a further split; beside it one without the image a."""
    layout = make_layout(tmp_path_factory.mktemp("data") / "voc")
    layout.image("b", np.zeros((60, 60, 3), np.uint8))
    layout.mask("b", np.eye(60, dtype=np.uint8))
    layout.mask("c", np.eye(40, 60, dtype=np.uint8) * 2)
    for image_id in ("e", "f"):
        layout.annotated_image(image_id)
    layout.split("more", ["e", "f"])
    other = Layout(layout.root.parent / "other")
    for image_id in "bcdvw":
        other.annotated_image(image_id)
    other.split("train", ["b", "c", "d"])
    other.split("val", ["v", "w"])
    return layout.root


@pytest.fixture(scope="module")
def prepare(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """`prepared` in a new folder, but each table once: many tests compare theirs with the same one."""

    @cache
    def make(changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
        return prepared(root, tmp_path_factory.mktemp("made"), dict(changes))

    return lambda changes: make(tuple(sorted(changes.items())))


def prepared(root: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """What is in the table, or the reason for which it was refused."""
    values: dict[str, Any] = {"root": str(root), "classes": ("background", "thing", "other"), "max_rejects": 0.9}
    values["generated"] = {"train": 4, "val": 2, "height": 32, "width": 40}
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        (values[section] if section else values)[field or name] = str(root.parent / "other") if value == "OTHER" else value
    settings = DataSettings.model_validate(values)
    data, out = data_folder(settings, 0, str(folder / "data")), str(folder / "images")
    try:
        made = prepare_images(settings, 0, out, "f" * 64, data, LocalExecutor(1))
    except UserError as error:
        return {"refused": str(error)}
    rows = list(tables.iter_rows(out))
    return {
        "ids": [row["image_id"] for row in rows],
        "splits": {row["image_id"]: row["split"] for row in rows},
        "sizes": {row["image_id"]: (row["height"], row["width"]) for row in rows},
        "objects": {row["image_id"]: row["object_mask"] for row in rows},
        "rejects": [(each.image_id, each.reason) for each in made.rejects],
    }


def test_every_setting_of_the_data_but_the_version_is_in_the_table() -> None:
    """A version is chosen in place of making a table: tests/workflows/test_table_versions.py."""
    generated = {f"generated.{name}" for name in GeneratedSettings.model_fields}
    assert set(EFFECTS) == DataSettings.model_fields.keys() - {"generated", "version"} | generated


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_of_the_data_changes_what_it_should(prepare: Prepare, name: str) -> None:
    value, beside, expected = EFFECTS[name]
    before, after = prepare(beside), prepare({**beside, name: value})
    changed = {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}
    assert changed == set(expected.split())
