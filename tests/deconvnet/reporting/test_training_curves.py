"""The figure of the training curves."""

from deconvnet.reporting import training_curves
from tests.deconvnet.png_pixels import area, pixels


def test_each_stage_has_two_panels() -> None:
    line = ([1, 2], [1.0, 0.5])
    one = training_curves.draw_training_curves({"fcn8s": {"loss": line, "dev_mean_iou": line}})
    two = training_curves.draw_training_curves({"fcn8s": {"loss": line}, "stage1": {"loss": line}})
    one, two = (pixels(each["training_curves.png"]) for each in (one, two))
    assert one.shape == (340, 1200, 3) and two.shape == (680, 1200, 3)
    assert area(one, (0x00, 0x72, 0xB2)) > 300
    assert training_curves.draw_training_curves({}) == {}
