"""An early exit (`segment.early_exit`) leaves out the boxes after ten that change little, and nothing else."""

import numpy as np
import pytest
import torch

from deconvnet.inference.instances import segment_instances
from deconvnet.inference.predictor import Predictor, PredictorOptions
from tests.deconvnet.ensembles import random_image, random_networks

AREAS = ([0, 0, 50, 50], [50, 0, 70, 20], [70, 0, 80, 10], [100, 0, 150, 50])
BOXES = np.array([[-90, 0, -80, 10], *(area for area in AREAS for _ in range(10))], np.float32)
"""A box outside the image, then ten boxes on each of four areas, which are 25, 4, 1 and 25 % of an image of 200×50 pixels."""
IMAGE = np.full((50, 200, 3), 100, np.uint8)
NO_BOXES = np.zeros((0, 4), np.float32)


class One(torch.nn.Module):
    """A network that predicts class 1 in every pixel, surer on the left of a crop; it keeps the sizes of its batches."""

    input_size, num_classes = 8, 2

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.stack([torch.zeros(8, 8), torch.linspace(3, 1, 8).expand(8, 8)]))
        self.batches: list[int] = []

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return self.scores.expand(len(images), -1, -1, -1)


@pytest.mark.parametrize("aggregation", ["max", "sum", "mean"])
@pytest.mark.parametrize(
    ("limit", "used"), [(None, 40), (0.0, 40), (0.0099, 40), (0.01, 30), (0.0399, 30), (0.04, 20), (1.0, 20)]
)
def test_boxes_end_when_ten_change_the_class_of_few_pixels(limit, used, aggregation):
    """The box outside the image does not count, and both images get the same boxes: else the mirrored one's sides would show."""
    numbers: list[int] = []
    options = {"context": 1.0, "aggregation": aggregation, "flip": True}
    found = segment_instances(One(), IMAGE, BOXES, **options, early_exit=limit, on_box=lambda n, _: numbers.append(n))
    assert numbers == list(range(1, used + 1))
    np.testing.assert_array_equal(found, segment_instances(One(), IMAGE, BOXES[: used + 1], **options))


def test_boxes_go_through_the_network_ten_at_a_time_at_most():
    for batch, expected in ((50, [10, 10]), (4, [4, 4, 2, 4, 4, 2])):
        segment_instances(model := One(), IMAGE, BOXES, context=1.0, batch=batch, early_exit=0.5)
        assert model.batches == expected
    segment_instances(model := One(), IMAGE, BOXES[:13], context=1.0, early_exit=0.5)
    assert model.batches == [10, 2], "there are no more"


@pytest.mark.parametrize("limit", [None, 0.0, 1.0])
def test_all_windows_are_used_and_then_at_least_ten_boxes(limit):
    windows = np.array([[x, 0, x + 50, 50] for x in range(0, 151, 25)], np.float32)
    numbers: list[int] = []
    found = segment_instances(
        One(), IMAGE, BOXES, windows=windows, background=False, early_exit=limit, on_box=lambda n, _: numbers.append(n)
    )
    assert len(numbers) == len(windows) + (40 if limit is None else 10) and (found.argmax(axis=0) == 1).all()
    segment_instances(model := One(), IMAGE, NO_BOXES, windows=windows, early_exit=limit)
    assert sum(model.batches) == len(windows)


def test_every_result_is_that_of_the_boxes_used():
    """From the 21st box on, the boxes lie elsewhere. `flip` has no effect on masks by number of boxes, also after the exit."""
    image, networks = random_image(3, 48, 64), random_networks(4)
    boxes = np.array([[5, 5, 40, 40]] * 20 + [[20, 0, 64, 30], [30, 20, 60, 47]], np.float32)
    options = {"bf16": False, "crf": {"iterations": 1}, "flip": True, "batch": 10}
    early = Predictor(*networks, PredictorOptions(**options, early_exit=0.0))
    fewer = Predictor(*networks, PredictorOptions(**options, proposals=20))
    every = Predictor(*networks, PredictorOptions(**options))
    one, expected, whole = (each.predict(image, boxes) for each in (early, fewer, every))
    assert (one.boxes, expected.boxes, whole.boxes) == (20, 20, 22)
    np.testing.assert_array_equal(one.mask, expected.mask)
    assert one.uncertainty == expected.uncertainty and (one.mask != whole.mask).any()
    (masks, counted, _), (others, _, _) = (
        each.predict_with_box_counts(image, boxes, counts) for each, counts in ((early, (1, 22)), (fewer, ()))
    )
    for name, mask in others.items():
        np.testing.assert_array_equal(masks[name], mask, err_msg=name)
    plain = Predictor(*networks, PredictorOptions(**{**options, "flip": False})).masks(image, boxes[:20], ("deconvnet",))[
        "deconvnet"
    ]
    np.testing.assert_array_equal(counted[22], plain)
    assert (plain != masks["deconvnet"]).any()
