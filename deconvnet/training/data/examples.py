"""The training or evaluation examples that a table holds (crops, or the images of a split), and how they are read and decoded."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from deconvnet.training.data import transforms
from deconvnet.training.data.sampler import Group
from infra.errors import BadInput, UserError
from infra.storage import tables
from proposals.image_codec import decode_example, decode_image, decode_mask


class NoExamples(UserError):
    """The error raised if a table holds no example of the requested split."""


@dataclass(frozen=True)
class Examples:
    """The examples that a table offers for training or evaluation.

    An `examples` table holds crops, each of which is an example. An `images` table holds whole images, and the images of one
    split are the examples.

    Attributes:
        table: URI of the table.
        size: side of the network's square input in pixels.
        groups: the row groups of the table's Parquet files that hold examples.
        split: split of the `images` table to use, "train" or "dev". None for an `examples` table.
        jitter: range of the random scaling of whole images. They are scaled by a factor between 1 − jitter and 1 + jitter.
    """

    table: str
    size: int
    groups: tuple[Group, ...]
    split: str | None = None
    jitter: float = 0.0

    @property
    def total(self) -> int:
        """Return the number of examples in an epoch.

        A row that is repeated in the epoch, to balance the classes, counts repeatedly.
        """
        return sum(g.examples for g in self.groups)

    def read(self, group: Group) -> pa.Table:
        """Read a row group of the table.

        Args:
            group: one of the row groups in the attribute `groups`.

        Returns:
            Table with the columns `image` and `mask` (encoded files, as bytes) and `weight` (int64). The weight says how often
            the row occurs in an epoch. It is 0 for images of another split.
        """
        names = ["image", "mask", "repeats"] if self.split is None else ["image", "class_mask", "split"]
        found = tables.read_row_group(self.table, group.part, group.index, names)
        image, mask, last = (found[name] for name in names)
        weight = last.cast(pa.int64()) if self.split is None else pa.array([int(s == self.split) for s in last.to_pylist()])
        return pa.table({"image": image, "mask": mask, "weight": weight})

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

    def view(self, image: bytes, mask: bytes, rng: np.random.Generator | None = None) -> transforms.Pair:
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
            BadInput: if the bytes are not an image and a mask of the same size, or a crop is smaller than S×S.
        """
        if self.split is None:
            return transforms.square_crop(*self.decode(image, mask), self.size, rng)
        return transforms.square_canvas(*self.decode(image, mask), self.size, rng, self.jitter)


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
    groups = []
    for part in commit.parts:
        for index, group in enumerate(part.row_groups):
            count = group.repeats if split is None else group.splits.get(split, 0)
            if count:
                groups.append(Group(part.name, index, count, group.nbytes))
    if not groups:
        raise NoExamples(f"{table} holds no example{f' of the split {split}' if split else ''}: there is nothing to train on")
    return Examples(table, size, tuple(groups), split, jitter)
