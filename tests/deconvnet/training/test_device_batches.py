"""Batches as tensors: for a GPU they are copied to pinned memory by another thread than the one that trains."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deconvnet.training.data.device_batches import host_batch, host_batches, to_device
from deconvnet.training.interfaces import Batch


def batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        yield np.full((2, 3, 4, 4), number, np.uint8), np.full((2, 4, 4), 10 + number, np.uint8)


@pytest.fixture
def pinned_by(monkeypatch) -> list[str]:
    """Stand in for pinned memory, which needs a GPU: collects the names of the threads that copy to it."""
    threads: list[str] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return threads


def test_for_a_gpu_a_thread_pins_the_batches_in_order(pinned_by):
    found = list(host_batches(batches(5), torch.device("cuda")))
    assert [(int(x[0, 0, 0, 0]), int(y[0, 0, 0])) for x, y in found] == [(n, 10 + n) for n in range(5)]
    assert len(pinned_by) == 10 and threading.current_thread().name not in pinned_by


def test_for_a_cpu_nothing_is_copied(pinned_by):
    made = list(batches(2))
    found = list(host_batches(iter(made), torch.device("cpu")))
    assert [x.data_ptr() for x, _ in found] == [images.ctypes.data for images, _ in made]
    assert pinned_by == []


def test_arrays_that_cannot_be_written_are_copied():
    """Such as those that Ray keeps in its object store."""
    images, masks = next(batches(1))
    images.flags.writeable = False
    x, y = host_batch((images, masks))
    assert x.data_ptr() != images.ctypes.data and torch.equal(x, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert y.data_ptr() == masks.ctypes.data


def test_on_the_device_images_are_channels_last_and_masks_are_numbers_of_64_bits():
    x, y = to_device(host_batch(next(batches(1))), torch.device("cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.uint8
    assert y.dtype == torch.int64 and y.tolist() == np.full((2, 4, 4), 10).tolist()
