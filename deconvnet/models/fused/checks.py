"""Checks of the arguments of fused operations, the same on CPUs and GPUs."""

import torch
from torch import Tensor


def check_class_ids(targets: Tensor, scores: Tensor) -> None:
    """Raise ValueError unless `targets` are int64 (N, H, W), for scores of shape (N, C, H, W). Values are not checked."""
    shape = (len(scores), *scores.shape[2:])
    if targets.dtype != torch.int64 or targets.shape != shape:
        raise ValueError(f"class ids must be int64 of shape {shape}, got {targets.dtype} of shape {tuple(targets.shape)}")


def check_count(count: int) -> None:
    """Raise ValueError if batch norm has fewer than 2 values per channel, as their variance would be 0."""
    if count < 2:
        raise ValueError(f"batch norm needs more than 1 value a channel, got {count}")
