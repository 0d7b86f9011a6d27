"""The figure of the training curves."""

import io

from PIL import Image

from deconvnet.reporting import training_curves


def test_each_stage_has_two_panels() -> None:
    line = ([1, 2], [1.0, 0.5])
    one = training_curves.draw_training_curves({"fcn8s": {"loss": line, "dev_mean_iou": line}})
    two = training_curves.draw_training_curves({"fcn8s": {"loss": line}, "stage1": {"loss": line}})
    heights = [Image.open(io.BytesIO(each["training_curves.png"])).height for each in (one, two)]
    assert heights == [340, 680]
    assert training_curves.draw_training_curves({}) == {}
