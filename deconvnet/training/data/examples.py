"""The training or evaluation examples that a table holds (crops, or the images of a split), and how they are read and decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deconvnet.training.data import transforms
from infra.errors import BadInput, UserError
from infra.storage import tables
from proposals.image_codec import decode_example, decode_image, decode_mask
from proposals.mining.rules import rarest


class NoExamples(UserError):
    """The error raised if a table holds no example of the requested split."""


@dataclass(frozen=True, eq=False)
class RowGroups:
    """The row groups of a table that hold examples. Arrays instead of objects, because a table may have hundreds of thousands.

    Attributes:
        files: names of the table's Parquet files, which are paths below its folder.
        file: int32 array of shape (G,): for each row group, the index of its file in `files`.
        index: int32 array of shape (G,): its index in the file, from 0.
        rows: int64 array of shape (G,): its number of rows.
        examples: int64 array of shape (G,): the number of examples that it has in an epoch, at least 1.
        nbytes: int64 array of shape (G,): its size in bytes.
    """

    files: tuple[str, ...]
    file: np.ndarray
    index: np.ndarray
    rows: np.ndarray
    examples: np.ndarray
    nbytes: np.ndarray

    def __len__(self) -> int:
        """Return the number of row groups."""
        return len(self.file)


@dataclass(frozen=True)
class Examples:
    """The examples that a table offers for training or evaluation.

    An `examples` table holds crops, each of which is an example. An `images` table holds whole images, and the images of one
    split are the examples.

    Attributes:
        table: URI of the table.
        size: side of the network's square input in pixels.
        groups: the row groups of the table's Parquet files that hold examples. They are numbered from 0.
        split: split of the `images` table to use, "train" or "dev". None for an `examples` table.
        jitter: range of the random scaling of whole images. They are scaled by a factor between 1 − jitter and 1 + jitter.
        repeats: how often a crop occurs in an epoch, by class id. A crop of several classes is repeated as its rarest one.
    """

    table: str
    size: int
    groups: RowGroups
    split: str | None = None
    jitter: float = 0.0
    repeats: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the number of examples in an epoch.

        A row that is repeated in the epoch, to balance the classes, counts repeatedly.
        """
        return int(self.groups.examples.sum())

    def footer(self, file: int) -> pq.FileMetaData | None:
        """Read the footer of a Parquet file of the table, given by its index in `groups.files`."""
        return tables.read_footer(self.table, self.groups.files[file])

    def read(self, number: int, footer: pq.FileMetaData | None = None) -> pa.Table:
        """Read a row group of the table.

        Args:
            number: number of the row group in the attribute `groups`.
            footer: footer of its file; None to read it.

        Returns:
            Table with the columns `image` and `mask` (encoded files, as bytes) and `weight` (int64). The weight says how often
            the row occurs in an epoch. It is 0 for images of another split.
        """
        groups = self.groups
        file, index = groups.files[groups.file[number]], int(groups.index[number])
        names = ["image", "mask", "class_ids"] if self.split is None else ["image", "class_mask", "split"]
        found = tables.read_row_group(self.table, file, index, names, footer)
        image, mask, last = (found[name] for name in names)
        weight = [_repeats(each, self.repeats) if self.split is None else int(each == self.split) for each in last.to_pylist()]
        return pa.table({"image": image, "mask": mask, "weight": pa.array(weight, pa.int64())})

    def decode(self, image: bytes, mask: bytes) -> transforms.Pair:
        """Decode the image and the mask of an example.

        Args:
            image: encoded image, as stored in the table.
            mask: encoded mask, as stored in the table.

        Returns:
            The image, uint8 RGB of shape (H, W, 3), and the mask, uint8 of shape (H, W) with class ids and 255 for void.

        Raises:
            BadInput: if the bytes are not an image and a mask of the same size.
        """
        if self.split is None:
            return decode_example(image, mask)
        rgb, class_mask = decode_image(image), decode_mask(mask)
        if class_mask.shape != rgb.shape[:2] or class_mask.dtype != np.uint8:
            raise BadInput(f"a mask of {class_mask.shape} {class_mask.dtype} for an image of {rgb.shape[:2]}")
        return rgb, class_mask

    def transform(self, image: bytes, mask: bytes, rng: np.random.Generator | None = None) -> transforms.Pair:
        """Decode an example and fit it to the network's square input, with random augmentation if `rng` is given.

        If the table holds crops, a square is cut out of the crop. If it holds whole images, the image is placed on a square
        canvas. With `rng`, the position is random, and the image and its mask are flipped at random. Without it, the position
        is the middle.

        Args:
            image: encoded image, as stored in the table.
            mask: encoded mask, as stored in the table.
            rng: random generator for this example, made by `transforms.example_rng`; None for evaluation.

        Returns:
            The image, uint8 RGB of shape (3, S, S), and the mask, uint8 of shape (S, S), where S is the attribute `size`.

        Raises:
            UserError: if the bytes are not an image and a mask of the same size, or a crop is smaller than S×S.
        """
        try:
            if self.split is None:
                return transforms.square_crop(*self.decode(image, mask), self.size, rng)
            return transforms.square_canvas(*self.decode(image, mask), self.size, rng, self.jitter)
        except BadInput as error:
            raise UserError(f"{self.table} is damaged (make it again): {error}") from None


def open_examples(table: str, size: int, split: str | None = None, jitter: float = 0.0) -> Examples:
    """Open a table of training or evaluation examples. Only the table's metadata are read.

    Args:
        table: URI of an `examples` table (crops) or an `images` table (whole images).
        size: side of the network's square input in pixels.
        split: split of the `images` table to use, "train" or "dev". None for an `examples` table.
        jitter: range of the random scaling of whole images. They are scaled by a factor between 1 − jitter and 1 + jitter.

    Returns:
        The examples. Their images and masks are read later, one row group at a time.

    Raises:
        FileNotFoundError: if there is no complete table at this URI.
        NoExamples: if the table, or its split, holds no example.
    """
    commit = tables.require_commit(table)
    repeats = {int(class_id): int(count) for class_id, count in commit.extra.get("repeats_by_class", {}).items()}
    weights = {text: _repeats([int(each) for each in text.split(",")], repeats) for text in _class_sets(commit)}
    columns: tuple[list[int], ...] = ([], [], [], [], [])
    for file, part in enumerate(commit.parts):
        for index, group in enumerate(part.row_groups):
            crops = sum(rows * weights[text] for text, rows in group.classes.items())
            count = crops if split is None else group.splits.get(split, 0)
            if count:
                for column, value in zip(columns, (file, index, group.rows, count, group.nbytes), strict=True):
                    column.append(value)
    if not columns[0]:
        raise NoExamples(f"{table} holds no example{f' of the split {split}' if split else ''}: there is nothing to train on")
    kinds = (np.int32, np.int32, np.int64, np.int64, np.int64)
    arrays = (np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
    return Examples(table, size, RowGroups(tuple(part.name for part in commit.parts), *arrays), split, jitter, repeats)


def _class_sets(commit: tables.Commit) -> set[str]:
    """Return the different sets of classes of a table's crops, as the summaries of the row groups name them ("1,15")."""
    return {text for part in commit.parts for group in part.row_groups for text in group.classes}


def _repeats(class_ids: Sequence[int], repeats: Mapping[int, int]) -> int:
    """Return how often a crop occurs in an epoch, given the ids of its classes and the repeats by class id."""
    return repeats[rarest(class_ids, repeats)]
