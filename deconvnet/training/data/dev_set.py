"""The dev examples that a network is evaluated on during training."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deconvnet.training.data.dataloader import collate, prefetched
from deconvnet.training.data.examples import Examples
from deconvnet.training.interfaces import Batch

DEV_LIMIT = 2048
"""Largest number of dev examples over all ranks, unless the caller of `DevSet` sets another."""

DEV_BYTES = 2**30
"""Approximate limit in bytes of the encoded dev examples over all ranks. Their size is estimated from the mean row size."""


def dev_counts(examples: Examples, limit: int = DEV_LIMIT) -> tuple[int, int]:
    """Count the dev examples of a training.

    Args:
        examples: all dev examples of the table.
        limit: largest number of examples to evaluate on.

    Returns:
        The number of examples that are evaluated, over all ranks, and the number that the table has.
    """
    groups, total = examples.groups, int(_counts(examples).sum())
    fitting = int(DEV_BYTES * groups.rows.sum() / max(1, groups.nbytes.sum()))
    return min(limit, max(1, fitting), total), total


def _counts(examples: Examples) -> np.ndarray:
    """Return the number of different dev examples in each row group: int64 array of shape (G,)."""
    return examples.groups.examples if examples.split else examples.groups.rows


class DevSet:
    """A rank's share of the dev examples, on which the network is evaluated after each epoch.

    At most `limit` examples of the table are used, and fewer if they would exceed about `DEV_BYTES`. They are spread evenly over
    the table and divided among the ranks (training processes). They stay encoded in memory and are decoded for each evaluation.
    """

    def __init__(self, examples: Examples, rank: int = 0, workers: int = 1, limit: int = DEV_LIMIT, threads: int = 2) -> None:
        """Read this rank's share of the dev examples from the table into memory.

        Each row of the table is used once, even if it occurs several times in a training epoch.

        Args:
            examples: all dev examples of the table.
            rank: rank of this training process, from 0.
            workers: number of ranks that share the examples.
            limit: largest number of examples over all ranks.
            threads: number of threads that decode.
        """
        self.examples = examples
        self.threads = threads
        self._rows: list[tuple[bytes, bytes]] = []
        counts = _counts(examples)
        used, total = dev_counts(examples, limit)
        chosen = np.unique(np.linspace(0, total - 1, used).round().astype(np.int64))[rank::workers]
        ends = np.cumsum(counts)
        groups_of_chosen = np.searchsorted(ends, chosen, side="right")
        for group in np.unique(groups_of_chosen).tolist():
            found = examples.read(group)
            if examples.split is not None:
                found = found.filter(pc.equal(found["weight"], 1))
            found = found.take(pa.array(chosen[groups_of_chosen == group] - (ends[group] - counts[group])))
            self._rows += zip(found["image"].to_pylist(), found["mask"].to_pylist(), strict=True)

    def __len__(self) -> int:
        """Return the number of examples in this rank's share."""
        return len(self._rows)

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over this rank's examples.

        Args:
            size: largest number of examples in a batch.

        Yields:
            Batches that together hold each example once: uint8 images of shape (n, 3, S, S) and masks of shape (n, S, S).

        Raises:
            UserError: if an example can't be decoded.
        """

        def made() -> Iterator[Batch]:
            """Decode the examples and combine them into batches, one batch after the other."""
            with ThreadPoolExecutor(self.threads) as pool:
                for start in range(0, len(self._rows), size):
                    yield collate(list(pool.map(lambda row: self.examples.transform(*row), self._rows[start : start + size])))

        return prefetched(made())
