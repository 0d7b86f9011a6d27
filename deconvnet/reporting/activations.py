"""The most active map of each layer of DeconvNet's decoder (§3.2.3 of the paper, "Analysis of Deconvolution Network")."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvnet.models.deconvnet import DeconvNet

LAYERS = tuple(f"{kind}{number}" for number in (5, 4, 3, 2, 1) for kind in ("unpool", "deconv"))
"""The decoder's unpooling layers and blocks of deconvolutions, from 1/16 of the input's size up to all of it."""


def decoder_maps(
    model: DeconvNet, crop: NDArray[np.uint8], where: NDArray[np.bool_] | None = None
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    """Find the most active map of each decoder layer: the channel whose activations have the largest sum.

    The model is run in evaluation mode and left as it was.

    Args:
        model: the network.
        crop: its input, uint8 (S, S, 3), RGB, with S the model's input size.
        where: pixels that count in the sum, bool (S, S), such as those of an object; None or all False: all pixels. Without it
            the background is often the most active.

    Returns:
        The map of each of `LAYERS`, float32 (h, w), at least 0 (for a block of deconvolutions, of its last layer); and the
        predicted class ids, uint8 (S, S).
    """
    counts = torch.ones(crop.shape[:2]) if where is None or not where.any() else torch.from_numpy(where).float()
    found: dict[str, NDArray[np.float32]] = {}

    def record(name: str) -> "torch.utils.hooks.RemovableHandle":
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps = output[0].float()
            weights = F.adaptive_avg_pool2d(counts[None], (maps.shape[1], maps.shape[2])).to(maps.device)
            found[name] = maps[int((maps * weights).sum(dim=(1, 2)).argmax())].cpu().numpy().copy()

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [record(name) for name in LAYERS]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            images = torch.from_numpy(np.ascontiguousarray(crop)).to(device).permute(2, 0, 1)[None]
            scores = model(model.prepare(images))[0]
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found, scores.argmax(dim=0).byte().cpu().numpy()
