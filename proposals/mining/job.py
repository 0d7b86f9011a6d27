"""Make the `examples` tables: training crops, cut in two passes over the images.

The first pass counts the examples of each class from the masks alone. The counts give the repeats that balance the classes. The
second pass cuts the crops. Both passes choose windows by the same function, so the counts are exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from infra.errors import BadInput, UserError
from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.storage import tables
from proposals import schemas
from proposals.changes import SAME_LABELS, PreviousPart, PreviousTable, previous_parts
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask
from proposals.job import iter_proposals
from proposals.mining.rules import (
    ExampleWindow,
    choose_stage1,
    choose_stage2,
    cut_example,
    example_size,
    find_objects,
    repeats_by_class,
)

if TYPE_CHECKING:
    from proposals.settings import ExampleSettings

Stage = Literal[1, 2]
Split = Literal["train", "dev"]


@dataclass(frozen=True)
class Unit:
    """What one part of an `examples` table is made from.

    Attributes:
        images: a part of the `images` table.
        proposals: the part of the `proposals` table made from it; None in stage 1.
        previous: what can be copied from a previous `examples` table; None if nothing.
    """

    images: tables.Part
    proposals: tables.Part | None
    previous: PreviousPart | None


def mine_examples(
    stage: Stage,
    images_uri: str,
    proposals_uri: str | None,
    out_uri: str,
    settings: "ExampleSettings",
    input_size: int,
    *,
    split: Split = "train",
    seed: int = 0,
    fingerprint: str,
    executor: Executor,
    previous: PreviousTable | None = None,
) -> tables.Commit:
    """Cut the training crops of one stage and split and write their table.

    Args:
        stage: 1 for crops of annotated objects, 2 for crops of proposals that overlap one.
        images_uri: the `images` table.
        proposals_uri: the `proposals` table; needed in stage 2 only.
        out_uri: the `examples` table to write, with a part for each part of `images_uri`; rows are sorted by (image_id, box).
        settings: rules of the crops.
        input_size: side of the network's input, px.
        split: the split whose images are used. Crops of "train" have `repeats` above 1 for rare classes if `settings.balance`.
        seed: seed of the choice among more than `settings.max_per_image` crops.
        fingerprint: fingerprint of the stage.
        executor: runs the parts.
        previous: an `examples` table of the same stage, split and settings; its rows are copied for images whose file, masks and
            split have not changed since.

    Returns:
        The commit of the table. Its `extra` has, by class id, the number of examples, their repeats, and the product of both.

    Raises:
        UserError: if not one crop of "train" can be cut; a table of "dev" may be empty.
    """
    units = _units(stage, images_uri, proposals_uri, previous)
    miner = _Miner(stage, images_uri, proposals_uri, settings, split, seed)
    counts = _count(miner, units, executor)
    if not counts and split == "train":
        raise UserError(_no_examples_message(stage, split, settings))
    balanced = settings.balance and split == "train"
    repeats = repeats_by_class(counts, settings.max_repeats if balanced else 1)
    size = example_size(input_size)
    rows = partial(miner.rows, repeats=repeats, size=size)
    title = f"examples, stage {stage}, {split}"
    parts = make_parts(out_uri, fingerprint, schemas.EXAMPLES, units, rows, executor, title=title)
    extra = {
        "stage": stage,
        "split": split,
        "size": size,
        "examples_by_class": {str(c): n for c, n in counts.items()},
        "repeats_by_class": {str(c): n for c, n in repeats.items()},
        "seen_by_class": {str(c): n * repeats[c] for c, n in counts.items()},
    }
    return tables.commit(out_uri, fingerprint, parts, extra)


@dataclass(frozen=True)
class _Miner:
    """Counts and cuts the examples of units. Attributes as the arguments of `mine_examples`."""

    stage: Stage
    images_uri: str
    proposals_uri: str | None
    settings: "ExampleSettings"
    split: Split
    seed: int

    def count(self, _: int, unit: Unit) -> np.ndarray:
        """Count a unit's examples by class id: int64 (256,). Images whose masks cannot be read have none."""
        counts = np.zeros(256, np.int64)
        copied = unit.previous.rows(SAME_LABELS, ["image_id", "class_id"]) if unit.previous else {}
        for row, boxes in self._annotated(unit, with_images=False):
            if row["image_id"] in copied:
                np.add.at(counts, [each["class_id"] for each in copied[row["image_id"]]], 1)
                continue
            try:
                windows = self._choose(row, *_decode_masks(row), boxes)
            except BadInput:
                continue
            np.add.at(counts, [w.class_id for w in windows], 1)
        return counts

    def rows(self, unit: Unit, repeats: Mapping[int, int], size: int) -> Iterator[Mapping[str, Any] | tables.Reject]:
        """Make the rows and rejects of a unit.

        Args:
            unit: the unit.
            repeats: by class id.
            size: side of the crops, px.
        """
        cv2.setNumThreads(1)  # each CPU has a unit of its own
        copied = unit.previous.rows(SAME_LABELS) if unit.previous else {}
        for row, boxes in self._annotated(unit, with_images=True):
            if row["image_id"] in copied:
                yield from ({**each, "repeats": repeats[each["class_id"]]} for each in copied[row["image_id"]])
                continue
            try:
                class_mask, object_mask = _decode_masks(row)
                windows = self._choose(row, class_mask, object_mask, boxes)
                if not windows:
                    continue
                image = decode_image(row["image"])
                if image.shape[:2] != class_mask.shape:
                    raise BadInput(f"image {_size(image)}, mask {_size(class_mask)}")
            except BadInput as error:
                yield tables.Reject(row["image_id"], "", f"examples stage {self.stage}", str(error))
                continue
            for window in windows:
                crop, mask = cut_example(image, class_mask, object_mask, window, self.stage, size)
                yield {
                    "image_id": row["image_id"],
                    "stage": self.stage,
                    "box": list(window.box),
                    "class_id": window.class_id,
                    "iou": window.iou,
                    "repeats": repeats[window.class_id],
                    "image": encode_jpeg(crop, self.settings.jpeg_quality),
                    "mask": encode_mask(mask),
                }

    def _annotated(self, unit: Unit, with_images: bool) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """The rows of the split's images that have masks, each with its proposals (N, 4); none in stage 1."""
        columns = ["image_id", "split", "class_mask", "object_mask", *(["image"] if with_images else [])]
        proposals: dict[str, np.ndarray] = {}
        if unit.proposals is not None and self.proposals_uri is not None:
            proposals = {image_id: boxes for image_id, boxes, _ in iter_proposals(self.proposals_uri, unit.proposals)}
        for row in tables.iter_rows(self.images_uri, columns, unit.images):
            if row["split"] == self.split and row["class_mask"] is not None and row["object_mask"] is not None:
                yield row, proposals.get(row["image_id"], np.zeros((0, 4), np.float32))

    def _choose(
        self, row: Mapping[str, Any], class_mask: np.ndarray, object_mask: np.ndarray, boxes: np.ndarray
    ) -> list[ExampleWindow]:
        """Choose the windows of one image by the rules of the stage."""
        s = self.settings
        objects = find_objects(class_mask, object_mask, s.min_object_side)
        if self.stage == 1:
            return choose_stage1(objects, s.context, s.window)
        return choose_stage2(
            objects,
            boxes,
            min_iou=s.min_iou,
            context=s.context,
            window=s.window,
            max_per_image=s.max_per_image,
            seed=self.seed,
            image_id=row["image_id"],
        )


def _units(stage: Stage, images_uri: str, proposals_uri: str | None, previous: PreviousTable | None) -> list[Unit]:
    """A unit per part of the images; raises ValueError if the proposals are missing or do not match."""
    images = tables.require_commit(images_uri)
    proposals: Sequence[tables.Part | None] = [None] * len(images.parts)
    if stage == 2:
        if proposals_uri is None:
            raise ValueError("stage 2 needs proposals")
        proposals = tables.require_commit(proposals_uri).parts
        if len(proposals) != len(images.parts):
            raise ValueError(f"the proposals at {proposals_uri} were not made from the images at {images_uri}")
    return [Unit(*each) for each in zip(images.parts, proposals, previous_parts(previous, images), strict=True)]


def _count(miner: _Miner, units: list[Unit], executor: Executor) -> dict[int, int]:
    """Count the examples of all units by class id, without classes that have none."""
    title = f"counting examples, stage {miner.stage}, {miner.split}"
    total = np.zeros(256, np.int64)
    for _, counts in executor.map(dict(enumerate(units)), miner.count, title=title):
        total += counts
    return {int(c): int(total[c]) for c in np.flatnonzero(total)}


def _no_examples_message(stage: Stage, split: Split, settings: "ExampleSettings") -> str:
    """The error message that explains why no example can be cut, naming the settings involved."""
    objects = f"annotated object of at least {settings.min_object_side} px (examples.min_object_side)"
    if stage == 1:
        return f"no training example can be cut: no {split} image has an {objects}"
    return (
        f"no stage-2 training example can be cut: no proposal of a {split} image has IoU {settings.min_iou} or more "
        f"(examples.min_iou) with an {objects}; smaller objects need a smaller proposals.min_box_area"
    )


def _decode_masks(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a row's class mask and object mask; raises BadInput if one is damaged or their sizes differ."""
    class_mask, object_mask = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
    if class_mask.shape != object_mask.shape:
        raise BadInput(f"class mask {_size(class_mask)}, object mask {_size(object_mask)}")
    return class_mask, object_mask


def _size(image: np.ndarray) -> str:
    """Width and height, for messages."""
    return f"{image.shape[1]}×{image.shape[0]}"
