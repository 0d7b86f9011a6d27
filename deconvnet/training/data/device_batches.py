"""Batches as tensors on the device that the network is computed on."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from deconvnet.training.data.dataloader import prefetched
from deconvnet.training.interfaces import Batch

TensorBatch = tuple[Tensor, Tensor]
"""A batch as tensors on the CPU: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S)."""


def host_batches(batches: Iterator[Batch], device: torch.device) -> Iterator[TensorBatch]:
    """Convert batches to tensors on the CPU.

    For a GPU they are copied to pinned memory, from which the GPU can fetch them while the CPU goes on. A thread does this for
    the next batch while the caller uses the present one.

    Args:
        batches: the batches, as arrays.
        device: the device that the batches are for.

    Yields:
        The batches as tensors, in the same order.
    """
    on_gpu = device.type == "cuda"
    tensors = (host_batch(batch, pinned=on_gpu) for batch in batches)
    return prefetched(tensors) if on_gpu else tensors


def host_batch(batch: Batch, pinned: bool = False) -> TensorBatch:
    """Convert a batch to tensors on the CPU.

    Args:
        batch: the batch, as arrays.
        pinned: whether to copy it to pinned memory.
    """
    images, masks = (torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in batch)
    return (images.pin_memory(), masks.pin_memory()) if pinned else (images, masks)


def to_device(batch: TensorBatch, device: torch.device) -> TensorBatch:
    """Copy a batch to a device. From pinned memory to a GPU this does not wait for the copy.

    Args:
        batch: the batch, on the CPU.
        device: where to copy it.

    Returns:
        The images as uint8 tensor in channels_last memory format, and the masks as int64 tensor.
    """
    images, masks = (tensor.to(device, non_blocking=True) for tensor in batch)
    return images.contiguous(memory_format=torch.channels_last), masks.long()
