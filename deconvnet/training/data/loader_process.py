"""Making training batches in a process of their own, by torch's `DataLoader`."""

from collections.abc import Callable, Iterator

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset

from deconvnet.training.interfaces import Batch
from infra.errors import UserError

AHEAD = 2
"""Number of batches that the process makes ahead of their use."""


class _MadeBatches(IterableDataset[Batch | UserError]):
    """The batches that a function makes, and the user's error that ends them, if there is one.

    The error is an item, not raised, because torch would put the process's traceback in place of its message.
    """

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        """Remember the function, which is called in the process."""
        self._make = make

    def __iter__(self) -> Iterator[Batch | UserError]:
        """Make the batches."""
        cv2.setNumThreads(1)  # examples are decoded in several threads already
        try:
            yield from self._make()
        except UserError as error:
            yield error


def made_by_process(make: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """Iterate over batches that a new process makes, some ahead of their use. They come through shared memory.

    Args:
        make: function that makes the batches. It is pickled and called in the process.

    Yields:
        The same batches in the same order.

    Raises:
        UserError: if `make` raises it.
        RuntimeError: if the process dies, or `make` raises another error.
    """
    loader = DataLoader(
        _MadeBatches(make),
        batch_size=None,  # an item is a batch already
        num_workers=1,
        prefetch_factor=AHEAD,
        multiprocessing_context="spawn",  # a fork of a process with threads may hang
        generator=torch.Generator(),  # of a seed for each process: drawn from torch's own, it would change the training
    )
    batches = iter(loader)
    while True:
        lost = ""
        try:
            made = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:  # torch names a dead process, but not if it dies while it hands over a batch
            lost = repr(error)
        if lost:
            # Ends torch's watch over the process, which else raises an error of its own, anywhere, as soon as it sees the death. The
            # error above would keep it alive, so it is not the cause of this one.
            del batches
            raise RuntimeError(f"the process that makes batches was killed, or lost a connection: {lost}")
        if isinstance(made, UserError):
            raise made
        images, masks = made
        yield images.numpy(), masks.numpy()
