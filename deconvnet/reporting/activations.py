"""Find the most active map of each layer of DeconvNet's decoder.

Source: Noh et al. (ICCV 2015), the paper on DeconvNet, §3.2.3, "Analysis of Deconvolution Network".
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvnet.models.deconvnet import DeconvNet

LAYERS = tuple(f"{kind}{number}" for number in (5, 4, 3, 2, 1) for kind in ("unpool", "deconv"))
"""Names of the decoder's layers, from coarse to fine: an unpooling layer and a block of deconvolutions at each resolution."""


def decoder_maps(
    model: DeconvNet, crop: NDArray[np.uint8], where: NDArray[np.bool_] | None = None
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    """Run DeconvNet on a crop and find the most active map of each decoder layer.

    A map is one channel of a layer's output. The most active one has the largest sum of activations. The model is run in
    evaluation mode, and its mode is restored afterwards.

    Args:
        model: the network.
        crop: the network's input, uint8 (S, S, 3), RGB, where S is the model's input size.
        where: the pixels whose activations are summed, bool (S, S), such as the pixels of an object. If it is None or all False,
            all pixels count. Then the chosen map often responds to the background.

    Returns:
        A tuple of two values. The first is a dict from the name of each layer ("unpool5", "deconv5", …, "deconv1"; see `LAYERS`)
        to its most active map, float32 (h, w), with values of at least 0. A "deconv" layer is a block of several deconvolutions,
        and its map is a channel of the block's output. The second value holds the predicted class ids, uint8 (S, S).
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
