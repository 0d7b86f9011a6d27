"""Making training batches in a process of their own, by torch's `DataLoader`."""

import signal
from collections.abc import Callable, Iterator

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset

from deconvnet.training.interfaces import Batch
from infra.errors import UserError

PREFETCH = 2
"""Number of batches that the process makes ahead of their use."""


class _MadeBatches(IterableDataset[Batch | UserError]):
    """The batches that a function makes, followed by the UserError that it raised, if any.

    The error is yielded instead of raised, because torch would replace its message by the traceback of the process.
    """

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        """Remember the function, which is called in the process."""
        self._make = make

    def __iter__(self) -> Iterator[Batch | UserError]:
        """Make the batches."""
        # A terminal sends Ctrl-C to all processes of the command, but only the main one should react.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cv2.setNumThreads(1)  # examples are decoded in several threads already
        try:
            yield from self._make()
        except UserError as error:
            yield error


def from_process(make: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
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
        prefetch_factor=PREFETCH,
        multiprocessing_context="spawn",  # a fork of a process with threads may hang
        # DataLoader draws a seed for its worker. From torch's global generator, this would change the training's random numbers.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    lost = ""
    try:
        for made in batches:
            if isinstance(made, UserError):
                raise made
            images, masks = made
            yield images.numpy(), masks.numpy()
    except (ConnectionError, EOFError) as error:  # the process died while it sent a batch; otherwise torch raises RuntimeError
        lost = repr(error)
    finally:
        # Deleting the iterator ends the process, and torch's watch on it, which would raise an error in unrelated code when the
        # process dies. It must be deleted explicitly, because an exception that leaves this function keeps local variables alive.
        del batches
    if lost:  # not raised in the `except` block: the caught error would be its context, and keep torch's variables alive
        raise RuntimeError(f"the process that makes batches was killed, or lost a connection: {lost}")
