"""What DeconvNet's decoder is doing: the most active map of each of its layers (§3.2, Figure 4)."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvnet.models.deconvnet import DeconvNet

LAYERS = tuple(f"{kind}{number}" for number in (5, 4, 3, 2, 1) for kind in ("unpool", "deconv"))
"""The decoder's unpoolings and its blocks of deconvolutions, from 1/16 of the input's size to all of it."""


def decoder_maps(
    model: DeconvNet, crop: NDArray[np.uint8], where: NDArray[np.bool_] | None = None
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    """For each of LAYERS the map, of all its channels, whose activations sum to most: float32 (h, w), none below 0; and the labels.

    crop: uint8 (S, S, 3) RGB, S the model's input size; the labels are uint8 (S, S). where: the pixels (S, S) that count for the
    sum, an object's say: else it is often background that is most active. Of a block of deconvolutions the last layer's maps are
    taken. The model is used in evaluation mode and left as it was.
    """
    counts = torch.ones(crop.shape[:2]) if where is None or not where.any() else torch.from_numpy(where).float()
    found: dict[str, NDArray[np.float32]] = {}

    def keep(name: str) -> "torch.utils.hooks.RemovableHandle":
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps = output[0].float()
            weights = F.adaptive_avg_pool2d(counts[None], (maps.shape[1], maps.shape[2])).to(maps.device)
            found[name] = maps[int((maps * weights).sum(dim=(1, 2)).argmax())].cpu().numpy().copy()

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in LAYERS]
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
