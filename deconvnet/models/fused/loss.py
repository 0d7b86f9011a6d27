"""The loss of training: the sum of the cross-entropies of all pixels that are not void."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.models.fused.available import use_fused
from deconvnet.models.fused.operations import cross_entropy


def summed_cross_entropy(scores: Tensor, truth: Tensor, void: int, factor: float) -> Tensor:
    """Compute the sum of the cross-entropies of all pixels that are not void, times a factor.

    Args:
        scores: scores before softmax, of shape (N, C, H, W) and any dtype, on any device.
        truth: class ids: int64 tensor of shape (N, H, W).
        void: class id of void pixels.
        factor: the factor.

    Returns:
        float32 tensor of shape ().
    """
    if use_fused(scores.device) and scores.dtype in (torch.bfloat16, torch.float32):
        return cross_entropy(scores, truth, void, factor)
    return F.cross_entropy(scores.float(), truth, ignore_index=void, reduction="sum") * factor
