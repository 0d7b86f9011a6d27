"""The networks as ONNX files: the scores of torch for any number of images, and for FCN-8s for images of any size."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deconvnet import DeconvNet, FCN8s
from deconvnet.models import onnx_export
from deconvnet.models.layers import Unpool
from deconvnet.models.onnx_export import export_onnx
from infra.errors import UserError
from tests.deconvnet.ensembles import randomised


def make_deconvnet():
    """DeconvNet at 1/16 of the width; its decoder is wider than its encoder, so that it spreads the switches."""
    return randomised(DeconvNet(5, 1 / 16, 64, decoder_width=1 / 8), 1)


def make_fcn8s():
    return randomised(FCN8s(5, 1 / 16, batch_norm=True, convention="torchvision"), 2)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(make_deconvnet, [(64, 64)]), (make_fcn8s, [(64, 64), (70, 90), (33, 128), (100, 31)])],
    ids=["deconvnet", "fcn8s"],
)
def test_onnxruntime_computes_the_scores_of_torch(tmp_path, make, sizes):
    network, file = make(), tmp_path / "network.onnx"
    difference = export_onnx(network, file)
    assert difference <= 1e-4
    onnx.checker.check_model(str(file))
    if isinstance(network, DeconvNet):
        assert sum(isinstance(module, Unpool) for module in network.modules()) == 5, "the network itself is not changed"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count, size in zip((1, 3, 2, 4), sizes * 2, strict=False):
        pixels = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = network(network.prepare(pixels)).numpy()
        [scores] = session.run(None, {"images": pixels.numpy()})
        assert scores.shape == (count, 5, *size) and np.abs(expected).max() > 0.1
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


def test_an_export_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_export._ScatterUnpool, "forward", lambda self, x, switches: x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    with pytest.raises(RuntimeError, match=r"network.onnx: onnxruntime's scores differ from torch's by .*, more than 0.0001"):
        export_onnx(make_deconvnet(), tmp_path / "network.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[onnx\]'"):
        export_onnx(make_deconvnet(), tmp_path / "network.onnx")
