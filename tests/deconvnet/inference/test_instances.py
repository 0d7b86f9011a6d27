"""`segment_instances` against a straightforward loop over the boxes, and `whole_image_scores`."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deconvnet.inference.instances import choose_boxes, segment_instances, whole_image_scores
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from proposals.boxes import crop, enlarge, window_pixels


class Constant(torch.nn.Module):
    """A network whose score of class c is `scores[c]` × the crop's mean red / 100, in every pixel."""

    input_size = 8

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor(scores, dtype=torch.float32))
        self.num_classes = len(scores)
        self.batches = []

    def prepare(self, images):
        assert images.dtype == torch.uint8
        return images.float()

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.batches.append(len(x))
        red = x[:, 0].mean((1, 2)) / 100
        return (red[:, None] * self.scores)[:, :, None, None].expand(-1, -1, 8, 8)


def network(seed=0, classes=5):
    torch.manual_seed(seed)
    model = DeconvNet(num_classes=classes, width=0.0625, input_size=32).eval()
    for parameter in model.parameters():  # untrained scores are all but 0
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def scores_by_loop(model, image, boxes, context, window, aggregation):
    """What `segment_instances` should return, computed box by box and pixel by pixel."""
    height, width = image.shape[:2]
    maps, covered = [np.zeros((model.num_classes, height, width), np.float32)], np.zeros((height, width), bool)
    for box in enlarge(boxes, context, window):
        x1, y1, x2, y2 = window_pixels(box)
        pixels = torch.from_numpy(crop(image, box, model.input_size)).permute(2, 0, 1)[None]
        with torch.no_grad():
            scores = model(model.prepare(pixels))
        scores = F.interpolate(scores, size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False)[0].numpy()
        placed = np.zeros_like(maps[0])
        for y in range(max(y1, 0), min(y2, height)):
            for x in range(max(x1, 0), min(x2, width)):
                placed[:, y, x] = scores[:, y - y1, x - x1]
                covered[y, x] = True
        maps.append(placed)
    out = np.max(maps, axis=0) if aggregation == "max" else np.sum(maps, axis=0)
    out[0][~covered] = np.log(model.num_classes - 1)
    return out


@pytest.mark.parametrize("aggregation", ["max", "sum"])
@pytest.mark.parametrize("window", ["square", "stretched"])
def test_scores_equal_those_of_a_loop_over_the_boxes(rng, aggregation, window):
    model = network()
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    corners = rng.random((11, 2)) * (60, 40)
    boxes = np.hstack([corners, corners + 3 + rng.random((11, 2)) * 35]).astype(np.float32)
    boxes[3] = [-20, -30, 15, 8]
    expected = scores_by_loop(model, image, boxes, 1.2, window, aggregation)
    assert np.abs(expected).max() > 0.1
    for batch in (1, 4, 50):
        found = segment_instances(model, image, boxes, window=window, aggregation=aggregation, batch=batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_overlapping_score_maps_are_merged_by_maximum_from_zero_or_by_sum():
    image = np.full((10, 20, 3), 100, np.uint8)
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10]], np.float32)
    maximum = segment_instances(Constant([1.0, 2, -3]), image, boxes, context=1)
    assert maximum[:, 5, 7] == pytest.approx([1, 2, 0])
    summed = segment_instances(Constant([1.0, 2, -3]), image, boxes, context=1, aggregation="sum")
    assert summed[:, 5, 2] == pytest.approx([1, 2, -3])
    assert summed[:, 5, 7] == pytest.approx([2, 4, -6])


def test_background_has_probability_one_half_where_no_box_reaches():
    image = np.full((10, 20, 3), 100, np.uint8)
    found = segment_instances(Constant([1.0, 2, 0, 5, 1]), image, np.array([[0, 0, 10, 10]], np.float32), context=1)
    assert found[:, 0, 12] == pytest.approx([np.log(4), 0, 0, 0, 0])
    assert np.exp(found[0, 0, 12]) / np.exp(found[:, 0, 12]).sum() == pytest.approx(0.5)
    nothing = segment_instances(Constant([1.0, 2]), image, np.zeros((0, 4), np.float32))
    assert (nothing.argmax(0) == 0).all() and nothing.shape == (2, 10, 20)


def test_boxes_outside_the_image_are_not_forwarded():
    model, image = Constant([1.0, 2]), np.full((10, 20, 3), 100, np.uint8)
    boxes = np.array([[30, 30, 40, 40], [0, 0, 5, 5], [-9, 2, -4, 5]], np.float32)
    segment_instances(model, image, boxes, batch=1)
    assert model.batches == [1]


def test_boxes_are_forwarded_in_batches_and_the_training_mode_is_restored():
    model, image = Constant([1.0, 2]).train(), np.zeros((10, 20, 3), np.uint8)
    segment_instances(model, image, np.tile(np.array([[0, 0, 5, 5]], np.float32), (7, 1)), batch=3)
    assert model.batches == [3, 3, 1]
    assert model.training


def test_an_image_of_one_pixel():
    image = np.full((1, 1, 3), 100, np.uint8)
    assert segment_instances(network(), image, np.array([[0, 0, 1, 1]], np.float32)).shape == (5, 1, 1)
    assert segment_instances(network(), image, np.zeros((0, 4))).argmax() == 0
    assert whole_image_scores(FCN8s(num_classes=5, width=0.0625, batch_norm=True), image).shape == (5, 1, 1)


def test_small_boxes_are_skipped_and_do_not_count():
    boxes = np.array([[0, 0, 5, 5], [0, 0, 50, 20], [0, 0, 4, 40], [0, 0, 60, 60]], np.float32)
    assert choose_boxes(boxes, 2).tolist() == boxes[:2].tolist()
    assert choose_boxes(boxes, 2, min_side=24, context=1.2).tolist() == boxes[[1, 2]].tolist()
    assert choose_boxes(boxes, 2, min_side=24, context=1.2, window="stretched").tolist() == boxes[[1, 3]].tolist()
    assert choose_boxes(np.zeros((0, 4)), 2, min_side=3).shape == (0, 4)
    model = Constant([1.0, 2])
    segment_instances(model, np.zeros((10, 10, 3), np.uint8), choose_boxes(boxes, min_side=24))
    assert model.batches == [3]


def test_whole_image_scores_are_those_of_the_network(rng):
    fcn = FCN8s(num_classes=4, width=0.0625, batch_norm=True).eval()
    for parameter in fcn.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = rng.integers(0, 256, (37, 45, 3)).astype(np.uint8)
    with torch.no_grad():
        expected = fcn(fcn.prepare(torch.from_numpy(image).permute(2, 0, 1)[None]))[0].numpy()
    found = whole_image_scores(fcn.train(), image)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert fcn.training


@pytest.mark.parametrize("wrong", [{"aggregation": "mean"}, {"batch": 0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        segment_instances(Constant([1.0]), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4)), **wrong)


def test_an_image_larger_than_the_training_images_is_scaled_down_for_fcn8s(rng):
    torch.manual_seed(0)
    fcn = FCN8s(num_classes=5, width=0.0625, batch_norm=True, input_size=64)
    torch.nn.init.normal_(fcn.score_pool3.weight)
    image = rng.integers(0, 256, (96, 128, 3), np.uint8)
    small = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
    seen = torch.from_numpy(whole_image_scores(fcn, small))
    assert seen.shape == (5, 48, 64) and seen.std() > 0
    expected = F.interpolate(seen[None], (96, 128), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(whole_image_scores(fcn, image), expected, atol=1e-5)
