"""Make the `examples` tables: training crops of the images.

The key of a part is a digest of the images, masks and proposals in the corresponding part of `images`. A note in the part counts
its crops by class. So a part whose inputs have not changed since an earlier version of the table is neither made nor read again.
To balance the classes, crops of rare classes are repeated in an epoch. The number of repeats depends on the counts of all parts,
so it is stored in the table's commit record and not in the rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from infra.errors import BadInput, UserError
from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.runtime.stages import digest
from infra.storage import tables
from proposals import schemas
from proposals.boxes import make_windows
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask
from proposals.image_notes import labels_key
from proposals.job import iter_proposals
from proposals.mining import EXAMPLES_VERSION
from proposals.mining.rules import (
    ExampleWindow,
    choose_stage1,
    choose_stage2,
    choose_windows,
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
    """The inputs for one part of an `examples` table. Making this part is one unit of work.

    Attributes:
        images: a part of the `images` table.
        proposals: the part of the `proposals` table with the same images; None in stage 1.
    """

    images: tables.Part
    proposals: tables.Part | None

    @property
    def key(self) -> str:
        """Return a digest of these inputs."""
        return digest([labels_key(self.images), self.proposals.digest if self.proposals else ""])


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
    windows: tuple[Sequence[float], float] = ((), 0.0),
    background: bool = True,
) -> tables.Commit:
    """Cut the training crops for one training stage and one split, and write them to a table.

    Long because of its arguments.

    Args:
        stage: 1 for crops of annotated objects, 2 for crops of proposals that overlap an annotated object.
        images_uri: URI of the `images` table.
        proposals_uri: URI of the `proposals` table; only stage 2 needs it.
        out_uri: URI of the `examples` table to write, with one part for each part of the `images` table.
        settings: rules by which crops are chosen and stored.
        input_size: side of the network's input in pixels.
        split: the split whose images are used. Only crops of "train" are repeated to balance the classes.
        seed: seed of the random choice in images with more than `settings.max_per_image` crops.
        fingerprint: digest of code version, settings and inputs, stored with the table.
        executor: runs the units of work, one per part of the table that does not exist yet, locally or on Ray.
        windows: sizes and overlap of the windows that are cut in stage 2 besides the proposals, see `boxes.make_windows`; no
            sizes for no windows.
        background: whether class 0 is the background.

    Returns:
        The table's commit record, which lists its parts. Its `extra` has three dicts with class ids as text for keys: the number
        of crops (`examples_by_class`), the repeats of each crop in an epoch (`repeats_by_class`) and their product
        (`seen_by_class`). A window is counted for each of its classes, and repeated as often as the rarest of them. The `extra`
        also has the `stage`, the `split` and the `size` of the crops in pixels.

    Raises:
        UserError: if no crop at all can be cut for "train". A table for "dev" may be empty.
        ValueError: if stage 2 has no proposals, or they were not made from these images.
    """
    units = _units(stage, images_uri, proposals_uri)
    size = example_size(input_size)
    miner = _Miner(stage, images_uri, proposals_uri, settings, split, seed, windows, background, size)
    title = f"examples, stage {stage}, {split}"
    keys = [unit.key for unit in units]
    parts = make_parts(out_uri, miner.recipe, schemas.EXAMPLES, units, miner.rows, executor, title=title, keys=keys)
    counts = _count(parts)
    if not counts and split == "train":
        raise UserError(_no_examples_message(stage, settings))
    balanced = settings.balance and split == "train"
    repeats = repeats_by_class(counts, settings.max_repeats if balanced else 1)
    extra = {
        "stage": stage,
        "split": split,
        "size": size,
        "examples_by_class": {str(c): n for c, n in counts.items()},
        "repeats_by_class": {str(c): n for c, n in repeats.items()},
        "seen_by_class": {str(c): n * repeats[c] for c, n in counts.items()},
    }
    return tables.commit(out_uri, fingerprint, parts, extra, keep_earlier=True)


@dataclass(frozen=True)
class _Miner:
    """A worker that cuts the training crops of a unit of work.

    A unit of work is one part of the `images` table, with its proposals.

    Attributes:
        stage: the training stage, 1 or 2.
        images_uri: URI of the `images` table.
        proposals_uri: URI of the `proposals` table; None in stage 1.
        settings: rules by which crops are chosen and stored.
        split: the split whose images are used.
        seed: seed of the random choice in images with more than `settings.max_per_image` crops.
        windows: sizes and overlap of the windows that stage 2 adds.
        background: whether class 0 is the background.
        size: side of the crops in pixels.
    """

    stage: Stage
    images_uri: str
    proposals_uri: str | None
    settings: "ExampleSettings"
    split: Split
    seed: int
    windows: tuple[Sequence[float], float]
    background: bool
    size: int

    @property
    def recipe(self) -> str:
        """Return a digest of the code version and of all options on which the crops of a part depend."""
        rules = self.settings.model_dump(exclude={"balance", "max_repeats"})
        options = [self.stage, self.split, self.seed, *self.windows, self.background, self.size]
        return digest([EXAMPLES_VERSION, tables.SCHEMA_VERSION, rules, options])

    def rows(self, unit: Unit) -> Iterator[Mapping[str, Any] | tables.Reject | tables.Note]:
        """Cut the training crops of one part of the `examples` table.

        OpenCV is limited to one thread in this process.

        Args:
            unit: the part of the `images` table, and its proposals.

        Yields:
            For each crop a row as a dict, for each image that cannot be used a `Reject` with the reason, and finally a `Note`
            with the number of crops by class id, such as "3:12 15:40". A window counts once for each class in it.
        """
        cv2.setNumThreads(1)  # every CPU already has a unit of work
        counts: Counter[int] = Counter()
        for row, boxes in self._annotated(unit):
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
                crop, mask = cut_example(image, class_mask, object_mask, window, self.stage, self.size, self.background)
                counts.update(window.classes)
                yield {
                    "image_id": row["image_id"],
                    "stage": self.stage,
                    "box": list(window.box),
                    "class_ids": list(window.classes),
                    "iou": window.iou,
                    "image": encode_jpeg(crop, self.settings.jpeg_quality),
                    "mask": encode_mask(mask),
                }
        yield tables.Note(" ".join(f"{class_id}:{count}" for class_id, count in sorted(counts.items())))

    def _annotated(self, unit: Unit) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Iterate over the images of the split that have a class mask and an object mask.

        Args:
            unit: the part of the `images` table, and its proposals. It is not read if it has no image of the split.

        Yields:
            A row of the `images` table, and the image's proposals: an array (N, 4) of x1, y1, x2, y2, which is empty in stage 1.
        """
        if not any(group.splits.get(self.split) for group in unit.images.row_groups):
            return
        columns = ["image_id", "split", "class_mask", "object_mask", "image"]
        proposals: dict[str, np.ndarray] = {}
        if unit.proposals is not None and self.proposals_uri is not None:
            proposals = {image_id: boxes for image_id, boxes, _ in iter_proposals(self.proposals_uri, unit.proposals)}
        for row in tables.iter_rows(self.images_uri, columns, unit.images):
            if row["split"] == self.split and row["class_mask"] is not None and row["object_mask"] is not None:
                yield row, proposals.get(row["image_id"], np.zeros((0, 4), np.float32))

    def _choose(
        self, row: Mapping[str, Any], class_mask: np.ndarray, object_mask: np.ndarray, boxes: np.ndarray
    ) -> list[ExampleWindow]:
        """Choose the boxes of one image that become training crops.

        Args:
            row: the image's row of the `images` table; only `image_id` is used.
            class_mask: uint8 array (H, W) of class ids.
            object_mask: uint8 or uint16 array (H, W) of object ids.
            boxes: array (N, 4) of x1, y1, x2, y2, the image's proposals; not used in stage 1.

        Returns:
            Windows as they are, then boxes that were enlarged by the context factor of the settings; each sorted by coordinates.
        """
        s = self.settings
        objects = find_objects(class_mask, object_mask, s.min_object_side, self.background)
        if self.stage == 1:
            return choose_stage1(objects, s.context, s.window)
        drawn: dict[str, Any] = {"max_per_image": s.max_per_image, "seed": self.seed, "image_id": row["image_id"]}
        height, width = class_mask.shape
        windows = choose_windows(class_mask, make_windows(height, width, *self.windows), **drawn)
        return windows + choose_stage2(objects, boxes, min_iou=s.min_iou, context=s.context, window=s.window, **drawn)


def _units(stage: Stage, images_uri: str, proposals_uri: str | None) -> list[Unit]:
    """Divide the job into units of work, one for each part of the `images` table.

    Args:
        stage: the training stage, 1 or 2.
        images_uri: URI of the `images` table.
        proposals_uri: URI of the `proposals` table; only stage 2 needs it.

    Returns:
        The units, in the order of the parts.

    Raises:
        ValueError: if stage 2 has no proposals, or they were not made from these images.
        FileNotFoundError: if one of the tables is not complete.
    """
    images = tables.require_commit(images_uri)
    proposals: Sequence[tables.Part | None] = [None] * len(images.parts)
    if stage == 2:
        if proposals_uri is None:
            raise ValueError("stage 2 needs proposals")
        proposals = tables.require_commit(proposals_uri).parts
        if len(proposals) != len(images.parts):
            raise ValueError(f"the proposals at {proposals_uri} were not made from the images at {images_uri}")
    return [Unit(*each) for each in zip(images.parts, proposals, strict=True)]


def _count(parts: Iterable[tables.Part]) -> dict[int, int]:
    """Add up the crops of each class, which the notes of the parts count.

    Args:
        parts: all parts of the table.

    Returns:
        The number of crops by class id; classes without crops are left out.
    """
    total: Counter[int] = Counter()
    for part in parts:
        for class_id, count in (text.split(":") for text in part.notes.split()):
            total[int(class_id)] += int(count)
    return dict(sorted(total.items()))


def _no_examples_message(stage: Stage, settings: "ExampleSettings") -> str:
    """Write the error message for the case that no training crop can be cut.

    Args:
        stage: the training stage, 1 or 2.
        settings: rules by which crops are chosen.

    Returns:
        The message, which names the settings to change.
    """
    objects = f"annotated object of at least {settings.min_object_side} px (examples.min_object_side)"
    if stage == 1:
        return (
            f"no training example can be cut: no train image has an {objects}; scenes without objects need proposals.kind windows"
        )
    return (
        f"no stage-2 training example can be cut: no proposal of a train image has IoU {settings.min_iou} or more "
        f"(examples.min_iou) with an {objects}; smaller objects need a smaller proposals.min_box_area, and scenes without "
        "objects need proposals.kind windows"
    )


def _decode_masks(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Decode the class mask and the object mask of an image.

    Args:
        row: a row of the `images` table with both masks.

    Returns:
        The class mask, uint8 (H, W), and the object mask, uint8 or uint16 (H, W).

    Raises:
        BadInput: if one of them is damaged, or their sizes differ.
    """
    class_mask, object_mask = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
    if class_mask.shape != object_mask.shape:
        raise BadInput(f"class mask {_size(class_mask)}, object mask {_size(object_mask)}")
    return class_mask, object_mask


def _size(image: np.ndarray) -> str:
    """Return the width and height of an image as text for messages, such as "500×375"."""
    return f"{image.shape[1]}×{image.shape[0]}"
