"""Layers that are computed as matrix products give what torch's layers give, with their gradients."""

import pytest
import torch
from torch import nn

from deconvnet.models.layers import MatrixConv2d, MatrixDeconv2d

CASES = [
    (MatrixConv2d, nn.Conv2d, (6, 5, 1), {}, (3, 6, 4, 7), "1×1"),
    (MatrixConv2d, nn.Conv2d, (6, 5, 1), {}, (3, 6, 1, 1), "1×1 on one pixel"),
    (MatrixConv2d, nn.Conv2d, (6, 5, 3), {}, (2, 6, 3, 3), "a kernel as large as the input"),
    (MatrixConv2d, nn.Conv2d, (6, 5, 3), {}, (2, 6, 4, 4), "a kernel smaller than the input"),
    (MatrixConv2d, nn.Conv2d, (6, 5, 3), {"padding": 1}, (2, 6, 3, 3), "a padded kernel"),
    (MatrixDeconv2d, nn.ConvTranspose2d, (6, 5, 3), {}, (2, 6, 1, 1), "a deconvolution of one pixel"),
    (MatrixDeconv2d, nn.ConvTranspose2d, (6, 5, 3), {}, (2, 6, 2, 2), "a deconvolution of more pixels"),
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
