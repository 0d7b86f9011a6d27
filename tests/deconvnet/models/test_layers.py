"""Layers that are computed as matrix products give what torch's layers give, with their gradients."""

import pytest
import torch
from torch import nn

from deconvnet.models.layers import MatrixConv2d, MatrixDeconv2d

# A layer, torch's, their arguments, options and input, a name, and whether it is computed as a matrix product.
CASES = [
    (MatrixConv2d, nn.Conv2d, (6, 5, 1), {}, (3, 6, 4, 7), "1×1", True),
    (MatrixConv2d, nn.Conv2d, (6, 5, 1), {}, (3, 6, 1, 1), "1×1 on one pixel", True),
    (MatrixConv2d, nn.Conv2d, (6, 5, 3), {}, (2, 6, 3, 3), "a kernel as large as the input", True),
    (MatrixConv2d, nn.Conv2d, (6, 5, 3), {}, (2, 6, 4, 4), "a kernel smaller than the input", False),
    (MatrixConv2d, nn.Conv2d, (6, 5, 3), {"padding": 1}, (2, 6, 3, 3), "a padded kernel", False),
    (MatrixDeconv2d, nn.ConvTranspose2d, (6, 5, 3), {}, (2, 6, 1, 1), "a deconvolution of one pixel", True),
    (MatrixDeconv2d, nn.ConvTranspose2d, (6, 5, 3), {}, (2, 6, 2, 2), "a deconvolution of more pixels", False),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("ours", "theirs", "arguments", "options", "shape"), [c[:5] for c in CASES], ids=[c[5] for c in CASES])
def test_a_matrix_product_gives_what_torch_gives(ours, theirs, arguments, options, shape, memory_format):
    layer, expected = ours(*arguments, **options).double(), theirs(*arguments, **options).double()
    expected.load_state_dict(layer.state_dict())
    layer.to(memory_format=memory_format)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    results = []
    for each in (layer, expected):
        y = each(x)
        gradients = torch.autograd.grad(y, [x, each.weight, each.bias], torch.cos(torch.arange(y.numel()).view(y.shape).double()))
        results.append((y, *gradients))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("ours", "theirs", "arguments", "shape"), [(*c[:3], c[4]) for c in CASES if c[6]])
def test_a_kernel_of_one_pixel_or_of_all_pixels_is_not_computed_as_a_convolution(monkeypatch, ours, theirs, arguments, shape):
    """The matrix product is many times as fast."""

    def refuse(*_):
        raise AssertionError("computed as a convolution")

    monkeypatch.setattr(theirs, "forward", refuse)
    ours(*arguments)(torch.zeros(shape))
