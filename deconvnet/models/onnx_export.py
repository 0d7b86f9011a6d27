"""Writing the networks as ONNX files, which run without torch and without this project.

A file contains the normalisation of the pixels, too. Its input is `images`, uint8 RGB images (N, 3, H, W). Its output is
`scores`, float32 (N, C, H, W), before softmax. N may have any value. For FCN-8s, H and W may, too; for DeconvNet, they are its
input size.

The older of torch's two exporters (TorchScript tracing) is used. The newer one takes half a minute for a network, and can export
FCN-8s only for sides that are multiples of 32.
"""

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deconvnet.models.layers import Unpool
from deconvnet.models.network import Network
from infra.errors import UserError

TOLERANCE = 1e-4
"""Largest difference of a score from torch's, as a share of the largest score (at least 1)."""
_OPSET = 18
_TRACED = 2  # images in the batch that is traced


class _ScatterUnpool(nn.Module):
    """Unpooling that ONNX can express: the activations are scattered to the positions of the maxima."""

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        """Enlarge activations (N, C, H, W) to (N, C, 2H, 2W). `switches` are the positions of the maxima, as for `Unpool`."""
        count, channels, height, width = x.shape
        zeros = x.new_zeros((count, channels, 4 * height * width))
        return zeros.scatter(2, switches.flatten(2), x.flatten(2)).view(count, channels, 2 * height, 2 * width)


class _FromPixels(nn.Module):
    """A network that takes unnormalised pixels."""

    def __init__(self, network: Network) -> None:
        """Wrap a copy of a network, in which scattering takes the place of unpooling."""
        super().__init__()
        self.network = copy.deepcopy(network).float().cpu().eval()
        for name, module in list(self.network.named_modules()):
            if isinstance(module, Unpool):
                self.network.set_submodule(name, _ScatterUnpool())

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (N, C, H, W) of uint8 RGB images (N, 3, H, W)."""
        scores: Tensor = self.network(self.network.prepare(images))
        return scores


def export_onnx(network: Network, file: Path) -> float:
    """Write a network as an ONNX file, run it in onnxruntime on this CPU, and check that the scores are those of torch.

    Args:
        network: the network.
        file: file to write.

    Returns:
        The largest difference of a score from torch's on random pixels, as a share of the largest score (at least 1).

    Raises:
        UserError: if the package onnx or onnxruntime is not installed.
        RuntimeError: if the difference is larger than `TOLERANCE`.
    """
    try:
        import onnx  # noqa: F401 - torch needs it
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -c constraints.txt -e '.[onnx]'") from None
    has_fixed_size = network.architecture == "deconvnet"
    side = network.input_size if has_fixed_size and network.input_size else 64
    moving = {0: "batch"} if has_fixed_size else {0: "batch", 2: "height", 3: "width"}
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing warns of checks of the input's shape.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding")
        torch.onnx.export(
            _FromPixels(network),
            (torch.zeros((_TRACED, 3, side, side), dtype=torch.uint8),),
            str(file),
            input_names=["images"],
            output_names=["scores"],
            dynamic_axes={"images": moving, "scores": moving},
            opset_version=_OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shape = (_TRACED - 1, 3, side, side) if has_fixed_size else (_TRACED - 1, 3, side + 5, side // 2 + 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = _scores(network, pixels)
    difference = float(np.abs(session.run(None, {"images": pixels})[0] - expected).max() / max(1.0, np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{file.name}: onnxruntime's scores differ from torch's by {difference:.2g}, more than {TOLERANCE:g}")
    return difference


def _scores(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Return the scores of a network in torch, float32 (N, C, H, W), of uint8 RGB images (N, 3, H, W)."""
    device = next(network.parameters()).device
    with torch.no_grad():
        scores: np.ndarray = network(network.prepare(torch.from_numpy(pixels).to(device))).float().cpu().numpy()
    return scores
