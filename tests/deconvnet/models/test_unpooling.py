"""Unpooling puts values and gradients where the switches of max pooling point."""

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from deconvnet.models.layers import Unpool


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**31),
    values=st.sampled_from([2, 5, 10_000]),  # few values: many ties
    last=st.booleans(),
)
def test_unpooling_puts_every_maximum_where_it_was(shape, seed, values, last):
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, values + 1, (n, c, 2 * h, 2 * w), generator=generator).float()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    pooled, switches = nn.MaxPool2d(2, 2, return_indices=True)(x)
    out = Unpool()(pooled.contiguous(), switches)
    assert out.shape == x.shape
    windows = F.unfold(out.reshape(-1, 1, 2 * h, 2 * w), 2, stride=2)
    originals = F.unfold(x.reshape(-1, 1, 2 * h, 2 * w), 2, stride=2)
    assert ((windows != 0).sum(1) == 1).all()  # one pixel in each window of 2×2
    kept = windows != 0
    assert torch.equal(windows[kept], originals[kept])  # which has the original value
    assert torch.equal(windows.amax(1), originals.amax(1))  # and that was the maximum


def test_unpooling_takes_gradients_from_where_the_switches_point():
    x = torch.randn(1, 2, 4, 4)
    pooled, switches = F.max_pool2d(x, 2, return_indices=True)
    pooled.requires_grad_()
    weights = torch.randn(1, 2, 4, 4)
    (Unpool()(pooled, switches) * weights).sum().backward()
    assert torch.equal(pooled.grad, weights.flatten(2).gather(2, switches.flatten(2)).view_as(pooled))
