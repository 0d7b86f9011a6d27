"""The input conventions give values computed by hand."""

import pytest
import torch

from deconvnet.models.preprocessing import prepare
from proposals.boxes import MEAN_RGB

ORANGE = torch.tensor([255, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1)  # RGB


def test_caffe_is_bgr_minus_mean():
    assert prepare(ORANGE, "caffe").flatten().tolist() == pytest.approx([0 - 103.939, 128 - 116.779, 255 - 123.68], abs=1e-4)


def test_torchvision_is_rgb_normalised():
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    assert prepare(ORANGE, "torchvision").flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("convention", "rounding"), [("caffe", 0.5), ("torchvision", 1 / 255 / 0.224)])
def test_the_colour_outside_an_image_becomes_0(convention, rounding):
    """Up to rounding and the difference of the two means, so that there is nothing to see outside."""
    outside = torch.tensor(MEAN_RGB, dtype=torch.uint8).view(1, 3, 1, 1)
    assert prepare(outside, convention).abs().max() <= rounding


@pytest.mark.parametrize("convention", ["caffe", "torchvision"])
def test_memory_format_is_kept_and_the_input_unchanged(convention):
    images = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    out = prepare(images, convention)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    assert torch.equal(out, prepare(images.contiguous(), convention))


@pytest.mark.parametrize(
    "images", [ORANGE.float(), ORANGE[0], ORANGE[:, :2], torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(3, 8, 8).byte()]
)
def test_floats_and_other_orders_of_the_axes_are_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 3, H, W\), RGB with values from 0 to 255"):
        prepare(images, "caffe")


def test_another_convention_is_refused():
    with pytest.raises(ValueError, match="unknown input convention"):
        prepare(ORANGE, "keras")
