"""The loss of training: the sum of the cross-entropies of all pixels that are not void."""

import torch.nn.functional as F
from torch import Tensor

from deconvnet.models.fused.available import use_fused


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
    if use_fused(scores.device):
        from deconvnet.models.fused.cross_entropy import DTYPES, cross_entropy

        if scores.dtype in DTYPES:
            return cross_entropy(scores, truth, void, factor)
    return F.cross_entropy(scores.float(), truth, ignore_index=void, reduction="sum") * factor
