"""The `examples` tables: training crops cut from the photographs, by an executor, in two passes.

The first counts the examples of each class from the masks alone; the counts give the repeats that balance the classes; the second
cuts. Both choose by the same function, so the counts are exact.
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
from proposals.changes import SAME_LABELS, Earlier, Known, known
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
    """A part of the images, the proposals made from it (stage 2), and what an earlier table knows of it."""

    images: tables.Part
    proposals: tables.Part | None
    known: Known | None


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
    earlier: Earlier | None = None,
) -> tables.Commit:
    """Cut the training crops of one stage and split and write their table.

    Args:
        stage: 1 for crops around annotated objects, 2 for crops of proposals that overlap one.
        images_uri: the `images` table.
        proposals_uri: the `proposals` table; needed for stage 2 only.
        out_uri: the `examples` table to write: a part for each part of `images_uri`, rows sorted by (image_id, box).
        settings: of the crops.
        input_size: side of the network's input, px.
        split: whose images are used. Crops of "train" carry `repeats` to balance the classes where `settings.balance`.
        seed: of the choice where an image has more than `settings.max_per_image` crops.
        fingerprint: of the stage.
        executor: runs the parts.
        earlier: crops of the same stage and split made with the same settings; rows of images whose pixels, masks and split are
            unchanged are copied.

    Returns:
        the commit of the table. Its `extra` counts, by class id, examples, repeats, and examples seen in an epoch.

    Raises:
        UserError: if not one crop of "train" can be made; a table of "dev" may be empty.
    """
    units = _units(stage, images_uri, proposals_uri, earlier)
    miner = _Miner(stage, images_uri, proposals_uri, settings, split, seed)
    counts = _count(miner, units, executor)
    if not counts and split == "train":
        raise UserError(_nothing_to_cut(stage, split, settings))
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


class _Miner:
    """What a task needs to choose and cut the examples of a unit."""

    def __init__(
        self, stage: Stage, images_uri: str, proposals_uri: str | None, settings: "ExampleSettings", split: Split, seed: int
    ) -> None:
        self.stage, self.images_uri, self.proposals_uri = stage, images_uri, proposals_uri
        self.settings, self.split, self.seed = settings, split, seed

    def count(self, _: int, unit: Unit) -> np.ndarray:
        """Examples of each class id in a unit: int64 (256,). Masks that can't be read count nothing; `rows` sets them aside."""
        counts = np.zeros(256, np.int64)
        before = unit.known.rows(SAME_LABELS, ["image_id", "class_id"]) if unit.known else {}
        for row, boxes in self._photographs(unit, with_images=False):
            if row["image_id"] in before:
                np.add.at(counts, [each["class_id"] for each in before[row["image_id"]]], 1)
                continue
            try:
                choices = self._choose(row, *_masks(row), boxes)
            except BadInput:
                continue
            np.add.at(counts, [c.class_id for c in choices], 1)
        return counts

    def rows(self, unit: Unit, repeats: Mapping[int, int], size: int) -> Iterator[Mapping[str, Any] | tables.Reject]:
        """A unit's examples, by schema, and its rejects."""
        cv2.setNumThreads(1)  # each CPU has a unit of its own
        before = unit.known.rows(SAME_LABELS) if unit.known else {}
        for row, boxes in self._photographs(unit, with_images=True):
            if row["image_id"] in before:
                yield from ({**each, "repeats": repeats[each["class_id"]]} for each in before[row["image_id"]])
                continue
            try:
                classes, objects = _masks(row)
                choices = self._choose(row, classes, objects, boxes)
                if not choices:
                    continue
                image = decode_image(row["image"])
                if image.shape[:2] != classes.shape:
                    raise BadInput(f"photograph {image.shape[1]}×{image.shape[0]}, mask {classes.shape[1]}×{classes.shape[0]}")
            except BadInput as error:
                yield tables.Reject(row["image_id"], "", f"examples stage {self.stage}", str(error))
                continue
            for choice in choices:
                picture, label = cut_example(image, classes, objects, choice, self.stage, size)
                yield {
                    "image_id": row["image_id"],
                    "stage": self.stage,
                    "box": list(choice.box),
                    "class_id": choice.class_id,
                    "iou": choice.iou,
                    "repeats": repeats[choice.class_id],
                    "image": encode_jpeg(picture, self.settings.jpeg_quality),
                    "mask": encode_mask(label),
                }

    def _photographs(self, unit: Unit, with_images: bool) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """The unit's labelled photographs of the split, with their proposals (none in stage 1)."""
        columns = ["image_id", "split", "class_mask", "object_mask", *(["image"] if with_images else [])]
        found: dict[str, np.ndarray] = {}
        if unit.proposals is not None and self.proposals_uri is not None:
            found = {image_id: boxes for image_id, boxes, _ in iter_proposals(self.proposals_uri, unit.proposals)}
        for row in tables.iter_rows(self.images_uri, columns, unit.images):
            if row["split"] == self.split and row["class_mask"] is not None and row["object_mask"] is not None:
                yield row, found.get(row["image_id"], np.zeros((0, 4), np.float32))

    def _choose(self, row: Mapping[str, Any], classes: np.ndarray, objects: np.ndarray, boxes: np.ndarray) -> list[ExampleWindow]:
        s = self.settings
        annotated = find_objects(classes, objects, s.min_object_side)
        if self.stage == 1:
            return choose_stage1(annotated, s.context, s.window)
        return choose_stage2(
            annotated,
            boxes,
            min_iou=s.min_iou,
            context=s.context,
            window=s.window,
            max_per_image=s.max_per_image,
            seed=self.seed,
            image_id=row["image_id"],
        )


def _units(stage: Stage, images_uri: str, proposals_uri: str | None, earlier: Earlier | None) -> list[Unit]:
    """The images' parts, in stage 2 each with its part of the proposals."""
    images = tables.require_commit(images_uri)
    proposals: Sequence[tables.Part | None] = [None] * len(images.parts)
    if stage == 2:
        if proposals_uri is None:
            raise ValueError("stage 2 needs proposals")
        proposals = tables.require_commit(proposals_uri).parts
        if len(proposals) != len(images.parts):
            raise ValueError(f"the proposals at {proposals_uri} were not made from the images at {images_uri}")
    return [Unit(*each) for each in zip(images.parts, proposals, known(earlier, images), strict=True)]


def _count(miner: _Miner, units: list[Unit], executor: Executor) -> dict[int, int]:
    """Examples by class id over all units; classes without any are left out."""
    title = f"counting examples, stage {miner.stage}, {miner.split}"
    total = np.zeros(256, np.int64)
    for _, counts in executor.map(dict(enumerate(units)), miner.count, title=title):
        total += counts
    return {int(c): int(total[c]) for c in np.flatnonzero(total)}


def _nothing_to_cut(stage: Stage, split: Split, settings: "ExampleSettings") -> str:
    """Why there are no examples, for a person."""
    objects = f"annotated object of at least {settings.min_object_side} px (examples.min_object_side)"
    if stage == 1:
        return f"no training example can be cut: no {split} photograph has an {objects}"
    return (
        f"no stage-2 training example can be cut: no proposal of a {split} photograph overlaps an {objects} "
        f"by IoU {settings.min_iou} (examples.min_iou); smaller objects need a smaller proposals.min_box_area"
    )


def _masks(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A row's class mask and object mask. Raises BadInput if one is damaged or their sizes differ."""
    classes, objects = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
    if classes.shape != objects.shape:
        raise BadInput(f"class mask {classes.shape[1]}×{classes.shape[0]}, object mask {objects.shape[1]}×{objects.shape[0]}")
    return classes, objects
