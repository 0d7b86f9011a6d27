"""`segment_instances` against a straightforward loop over the boxes, and `whole_image_scores`."""

import tracemalloc

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deconvnet.inference.instances import choose_boxes, segment_instances, whole_image_scores
from deconvnet.inference.score_maps import merge_score_map
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from proposals.boxes import crop, enlarge, make_windows, mirrored_boxes, window_pixels


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


@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_with_flip_the_scores_are_the_mean_of_both_images_and_symmetric(rng, aggregation):
    """The mirrored image with mirrored boxes must give the mirrored scores, and a box on one side must stay on that side."""
    model, image = network(), rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    mirror = np.ascontiguousarray(image[:, ::-1])
    boxes, windows = np.array([[2, 5, 30, 25], [-9, 20, 13, 44]], np.float32), np.array([[0, 0, 20, 40]], np.float32)
    options = {"windows": windows, "aggregation": aggregation, "batch": 2}
    other = options | {"windows": mirrored_boxes(windows, 60)}
    straight = segment_instances(model, image, boxes, **options)
    turned = segment_instances(model, mirror, mirrored_boxes(boxes, 60), **other)
    numbers = []
    found = segment_instances(model, image, boxes, **options, flip=True, on_box=lambda number, _: numbers.append(number))
    np.testing.assert_allclose(found, (straight + turned[..., ::-1]) / 2, atol=1e-5)
    again = segment_instances(model, mirror, mirrored_boxes(boxes, 60), **other, flip=True)
    np.testing.assert_allclose(again, found[..., ::-1], atol=1e-5)
    assert numbers == [1, 2, 3] and np.abs(found - straight).max() > 0.01
    assert (found[1:, :, 55:] == 0).all() and (found[1:, 5:, :20] != 0).any()


def test_with_flip_a_whole_image_has_the_mean_scores_of_both(rng):
    fcn = FCN8s(num_classes=3, width=0.0625, batch_norm=True, input_size=64).double().eval()
    torch.nn.init.normal_(fcn.score_pool3.weight)
    image = np.zeros((70, 100, 3), np.uint8)
    image[:, :40] = rng.integers(0, 256, 3)
    straight = whole_image_scores(fcn, image)
    turned = whole_image_scores(fcn, np.ascontiguousarray(image[:, ::-1]))[..., ::-1]
    np.testing.assert_allclose(whole_image_scores(fcn, image, flip=True), (straight + turned) / 2, rtol=1e-6, atol=1e-6)
    assert np.abs(turned - straight).max() > 1e-3


def test_overlapping_score_maps_are_merged_by_maximum_from_zero_or_by_sum():
    image = np.full((10, 20, 3), 100, np.uint8)
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10]], np.float32)
    maximum = segment_instances(Constant([1.0, 2, -3]), image, boxes, context=1)
    assert maximum[:, 5, 7] == pytest.approx([1, 2, 0])
    summed = segment_instances(Constant([1.0, 2, -3]), image, boxes, context=1, aggregation="sum")
    assert summed[:, 5, 2] == pytest.approx([1, 2, -3])
    assert summed[:, 5, 7] == pytest.approx([2, 4, -6])


@pytest.mark.parametrize("number", [256, 300])
def test_hundreds_of_boxes_over_a_pixel_are_counted(number):
    image, boxes = np.full((4, 4, 3), 100, np.uint8), np.tile(np.array([[0, 0, 4, 4]], np.float32), (number, 1))
    for aggregation in ("mean", "max"):  # with "max", the background's score would be that of a pixel without a box
        found = segment_instances(Constant([0.5, 2, 1]), image, boxes, context=1, aggregation=aggregation)
        np.testing.assert_allclose(found[:, 2, 2], [0.5, 2, 1], rtol=1e-5)


def test_background_has_probability_one_half_where_no_box_reaches():
    image = np.full((10, 20, 3), 100, np.uint8)
    found = segment_instances(Constant([1.0, 2, 0, 5, 1]), image, np.array([[0, 0, 10, 10]], np.float32), context=1)
    assert found[:, 0, 12] == pytest.approx([np.log(4), 0, 0, 0, 0])
    assert np.exp(found[0, 0, 12]) / np.exp(found[:, 0, 12]).sum() == pytest.approx(0.5)
    nothing = segment_instances(Constant([1.0, 2]), image, np.zeros((0, 4), np.float32))
    assert (nothing.argmax(0) == 0).all() and nothing.shape == (2, 10, 20)


def test_boxes_outside_the_image_are_not_forwarded():
    model, image = Constant([1.0, 2]), np.full((10, 20, 3), 100, np.uint8)
    beyond_each_edge = [[-9, 0, 0, 5], [20, 0, 25, 5], [0, -9, 5, 0], [0, 10, 5, 15]]
    boxes = np.array([[30, 30, 40, 40], [0, 0, 5, 5], [-9, 2, -4, 5], *beyond_each_edge], np.float32)
    segment_instances(model, image, boxes, context=1.0, window="stretched", batch=1)
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


@pytest.mark.parametrize("wrong", [{"aggregation": "median"}, {"batch": 0}, {"early_exit": 1.01}, {"early_exit": -0.01}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
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


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((3, 900), (1, 64)), ((900, 3), (64, 1)), ((48, 65), (47, 64)), ((64, 40), (64, 40)), ((50, 30), (50, 30))],
)
def test_only_images_above_the_input_size_are_scaled_down_and_to_one_pixel_at_least(shape, seen):
    fcn, sizes = FCN8s(num_classes=2, width=0.0625, batch_norm=True, input_size=64), []
    fcn.register_forward_pre_hook(lambda _, images: sizes.append(tuple(images[0].shape[-2:])))
    assert whole_image_scores(fcn, np.zeros((*shape, 3), np.uint8)).shape == (2, *shape) and sizes == [seen]


class OnGpu(torch.Tensor):
    """A tensor in the CPU's memory that says that it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


@pytest.mark.parametrize("aggregation", ["max", "sum"])
@pytest.mark.parametrize("pixels", [(3, 2, 19, 13), (-4, -3, 40, 9), (1, 1, 3, 3)])
def test_score_maps_are_merged_on_a_gpu_as_on_the_cpu(rng, aggregation, pixels):
    scores, before = (torch.from_numpy(rng.normal(size=(2, *size)).astype(np.float32)) for size in ((8, 8), (15, 22)))
    canvases, buffer = [before.clone(), before.clone()], np.empty(1000, np.float32)
    for canvas, given in zip(canvases, (scores, scores.as_subclass(OnGpu)), strict=True):
        merge_score_map(given, pixels, canvas, aggregation, buffer)
    np.testing.assert_allclose(*canvases, atol=1e-5)
    assert not torch.equal(canvases[0], before)


NO_BOXES = np.zeros((0, 4), np.float32)


@pytest.mark.parametrize("height, width, sizes", [(41, 67, (1.0, 0.5)), (30, 30, (0.37,)), (64, 20, (1.0, 0.6, 0.21))])
def test_overlapping_windows_of_a_constant_network_leave_no_seams(height, width, sizes):
    model, image = Constant([1.5, -2.0, 0.25]), np.full((height, width, 3), 100, np.uint8)
    windows = make_windows(height, width, sizes, 0.4)
    mean, total, most = (
        segment_instances(model, image, NO_BOXES, windows=windows, aggregation=how, background=False)
        for how in ("mean", "sum", "max")
    )
    np.testing.assert_allclose(mean, np.broadcast_to(np.array([1.5, -2, 0.25])[:, None, None], mean.shape), rtol=1e-5)
    seen = np.zeros((height, width))
    for x1, y1, x2, y2 in windows.astype(int):
        seen[y1:y2, x1:x2] += 1
    np.testing.assert_allclose(total, mean * seen, rtol=1e-5)
    np.testing.assert_allclose(most, np.maximum(mean, 0), rtol=1e-5)
    assert sum(model.batches) == 3 * len(windows)


@pytest.mark.parametrize("aggregation", ["max", "sum", "mean"])
def test_windows_are_not_enlarged_and_boxes_after_them_are(rng, aggregation):
    model, image = network(), rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)
    windows, boxes = make_windows(40, 56, [0.8, 0.5], 0.2), np.array([[5, 8, 30, 27]], np.float32)
    how = "sum" if aggregation == "mean" else aggregation
    ones = (scores_by_loop(model, image, windows, 1.0, "square", how), scores_by_loop(model, image, boxes, 1.2, "square", how))
    seen = np.zeros((40, 56))
    for x1, y1, x2, y2 in [*windows.astype(int), window_pixels(enlarge(boxes)[0])]:
        seen[max(y1, 0) : y2, max(x1, 0) : x2] += 1
    ones[1][:, ~(ones[1] != np.float32(np.log(4))).all(0)] = 0  # where no box is, the background's score
    expected = np.maximum(*ones) if aggregation == "max" else sum(ones) / (seen if aggregation == "mean" else 1)
    counts = []
    found = segment_instances(
        model,
        image,
        boxes,
        windows=windows,
        aggregation=aggregation,
        batch=4,
        on_box=lambda number, canvas: counts.append(number),
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert counts == list(range(1, len(windows) + 2))


def test_without_a_background_nothing_is_assumed_of_uncovered_pixels():
    model, image = Constant([1.0, 2.0, 3.0]), np.full((20, 30, 3), 100, np.uint8)
    found = segment_instances(model, image, np.array([[0, 0, 10, 10]], np.float32), context=1.0, background=False)
    assert not found[:, 12:].any() and not found[:, :, 12:].any() and (found[:, :10, :10] > 0.9).all()


def test_a_large_image_needs_the_canvas_and_one_batch():
    """numpy's memory is measured; the canvas and the network's are torch's, and the largest batch says what the network needs."""
    model, image = Constant([1.0, 2.0]), np.zeros((1500, 2000, 3), np.uint8)
    windows = make_windows(1500, 2000, [0.1], 0.5)
    tracemalloc.start()
    found = segment_instances(model, image, NO_BOXES, windows=windows, aggregation="mean", batch=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (2, 1500, 2000) and len(windows) > 450 and max(model.batches) == 16
    assert peak < 20_000_000  # of which 6 MB are the number of windows of each pixel; 450 crops of the windows would be 30 MB
