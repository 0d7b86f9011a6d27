"""EdgeBox on drawn and real images."""

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from proposals import edge_boxes, edgebox
from proposals.boxes import iou
from proposals.edgebox import PAPER_OPTIONS, EdgeBoxOptions, find_boxes
from proposals.image_codec import decode_image, decode_mask
from proposals.mining.rules import find_objects
from proposals.settings import WINDOW_SETTINGS, ProposalSettings


def rectangle(height: int = 120, width: int = 160) -> np.ndarray:
    image = np.full((height, width, 3), 60, np.uint8)
    image[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = (200, 40, 40)
    return image


def test_the_best_box_is_round_the_object():
    boxes, scores = find_boxes(rectangle(), PAPER_OPTIONS)
    assert boxes.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(boxes[0], [40, 30, 120, 90], atol=6)
    assert iou(boxes[:1], [[40, 30, 120, 90]])[0, 0] > 0.8
    assert (np.diff(scores) <= 0).all()


def test_boxes_are_centred_on_their_objects(rng):
    """OpenCV's own rectangles are off by half a pixel to the lower right; ours are corrected to pixel edges."""
    off = []
    for x, y, width, height in zip(*rng.integers(15, 60, (2, 24)), *rng.integers(35, 70, (2, 24)), strict=True):
        image = np.full((140, 150, 3), 60, np.uint8)
        image[y : y + height, x : x + width] = (200, 40, 40)
        box = find_boxes(image, replace(PAPER_OPTIONS, max_boxes=1))[0][0]
        off.append((box[:2] + box[2:]) / 2 - [x + width / 2, y + height / 2])
    assert np.abs(np.mean(off, axis=0)).max() < 0.25


def test_large_images_are_searched_small_and_boxes_are_in_their_own_pixels():
    small, _ = edge_boxes(rectangle(300, 400), max_boxes=1)
    large, _ = edge_boxes(rectangle(3000, 4000), max_boxes=1, max_side=400)
    np.testing.assert_allclose(large, small * 10, atol=60)


def test_large_images_are_averaged_as_they_are_scaled_down(monkeypatch):
    """Black and white pixels become grey, without edges. Interpolation would leave them black or white."""
    seen = []
    monkeypatch.setattr(edgebox, "_search", lambda image, _: seen.append(image) or (np.zeros((0, 4)), np.zeros(0)))
    board = np.repeat(255 * (np.indices((320, 320)).sum(0) % 2).astype(np.uint8)[..., None], 3, axis=2)
    edge_boxes(board, max_side=64)
    assert seen[0].shape == (64, 64, 3) and np.abs(seen[0] - 127.5).max() < 8


def test_boxes_lie_inside_the_image_and_are_at_most_max_boxes(rng):
    image = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    for keywords in ({}, {"min_box_area": 25.0, "max_aspect_ratio": 10.0}, {"beta": 0.995}, {"max_side": 61}):
        boxes, scores = edge_boxes(image, 40, edges="gradient", **keywords)
        assert 0 < len(boxes) == len(scores) <= 40 and np.isfinite(scores).all()
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [90, 70]).all() and (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 200), (200, 2), (8, 8), (9, 500), (40, 40)])
def test_tiny_images_do_not_crash(shape, rng):
    boxes, scores = edge_boxes(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), min_box_area=25.0, max_aspect_ratio=10.0)
    assert boxes.shape == (len(scores), 4)


def test_images_narrower_than_8_pixels_are_not_given_to_opencv(monkeypatch, rng):
    """It would read beside them."""
    monkeypatch.setattr(cv2.ximgproc, "createEdgeBoxes", lambda **_: pytest.fail("it is asked"))
    for shape in ((7, 200, 3), (200, 7, 3)):
        assert len(edge_boxes(rng.integers(0, 256, shape, dtype=np.uint8), edges="gradient")[0]) == 0


def test_an_image_of_one_colour_has_no_boxes():
    boxes, scores = edge_boxes(np.full((100, 100, 3), 90, np.uint8))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_fewer_boxes_are_the_first_of_more(voc_rows):
    image = decode_image(voc_rows[0]["image"])
    boxes, scores = edge_boxes(image, 2000)
    few, few_scores = edge_boxes(image, 50)
    np.testing.assert_array_equal(few, boxes[:50])
    np.testing.assert_array_equal(few_scores, scores[:50])


def test_soft_nms_makes_the_first_boxes_overlap_less(voc_rows):
    image = decode_image(voc_rows[0]["image"])
    pairs = np.triu_indices(50, 1)
    with_soft_nms, without = (edge_boxes(image, 50, soft_nms_strength=strength)[0] for strength in (0.9, 0.0))
    assert iou(with_soft_nms, with_soft_nms)[pairs].mean() < 0.8 * iou(without, without)[pairs].mean()


def test_edge_detectors_differ_and_a_lower_edge_gain_finds_fewer_boxes(voc_rows):
    image = decode_image(voc_rows[0]["image"])
    forest, gradient = edge_boxes(image, 100)[0], edge_boxes(image, 100, edges="gradient")[0]
    assert len(forest) == len(gradient) == 100 and not np.array_equal(forest, gradient)
    faint = edge_boxes(image, 2000, edge_gain=0.2)[1]
    assert len(faint) < len(edge_boxes(image, 2000)[1])


def test_the_settings_are_the_options_of_edge_boxes():
    assert EdgeBoxOptions(**ProposalSettings().edge_box) == EdgeBoxOptions()
    assert ProposalSettings.model_fields.keys() - set(WINDOW_SETTINGS) == {field.name for field in fields(EdgeBoxOptions)}
    with pytest.raises(TypeError, match="unknown"):
        edge_boxes(rectangle(), unknown=1)


ANOTHER = {
    "max_boxes": 50,
    "edges": "gradient",
    "edge_model": "not there.yml.gz",
    "multiscale": True,
    "edge_gain": 1.0,
    "alpha": 0.5,
    "beta": 0.6,
    "eta": 0.9,
    "min_score": 0.1,
    "edge_min_mag": 0.3,
    "edge_merge_thr": 0.2,
    "min_box_area": 3000.0,
    "max_aspect_ratio": 1.5,
    "gamma": 2.0,
    "kappa": 1.5,
    "max_side": 100,
    "soft_nms_strength": 0.0,
    "soft_nms_power": 2.0,
    "soft_nms_first": 3,
}


@pytest.mark.parametrize("name", ANOTHER)
def test_every_option_changes_the_boxes(name):
    assert {field.name for field in fields(EdgeBoxOptions)} == set(ANOTHER)
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8), (0, 0), 2)
    if name == "edge_model":
        with pytest.raises(UserError, match=r"not there\.yml\.gz"):
            edge_boxes(image, edge_model=ANOTHER[name])
        return
    one, other = (np.column_stack(find_boxes(image, EdgeBoxOptions(**options))) for options in ({}, {name: ANOTHER[name]}))
    assert len(one) > 60 and not np.array_equal(one, other)


def test_each_option_reaches_opencvs_parameter_of_its_name(monkeypatch):
    """OpenCV would accept most of them in each other's places, and the boxes would only be worse."""
    made, create = [], cv2.ximgproc.createEdgeBoxes

    def record(*given, **named):
        made.append(create(*given, **named))
        return made[-1]

    monkeypatch.setattr(cv2.ximgproc, "createEdgeBoxes", record)
    given = {"alpha": 0.5, "beta": 0.6, "eta": 0.9, "min_score": 0.1, "edge_min_mag": 0.3, "edge_merge_thr": 0.2}
    given |= {"max_boxes": 5000, "min_box_area": 3000.0, "max_aspect_ratio": 2.5, "gamma": 2.0, "kappa": 1.5}
    find_boxes(rectangle(), EdgeBoxOptions(edges="gradient", **given))
    (used,) = made
    found = {name: getattr(used, f"get{name.title().replace('_', '')}")() for name in given}  # as getEdgeMinMag
    assert found == pytest.approx(given)


def test_paper_options_are_those_of_zitnick_and_dollar():
    """The settings released with the paper, which our defaults must not change."""
    o = PAPER_OPTIONS
    assert (o.alpha, o.beta, o.eta, o.gamma, o.kappa) == (0.65, 0.75, 1.0, 2.0, 1.5)
    assert (o.min_score, o.edge_min_mag, o.edge_merge_thr) == (0.01, 0.1, 0.5)
    assert (o.min_box_area, o.max_aspect_ratio) == (1000.0, 3.0)
    assert (o.edges, o.edge_gain, o.multiscale, o.soft_nms_strength) == ("gradient", 1.0, False, 0.0)


def test_without_opencvs_contrib_modules_the_error_names_the_package(monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(UserError, match="opencv-contrib-python-headless"):
        edge_boxes(rectangle())


def test_objects_of_real_images_are_found_with_any_number_of_threads(voc_rows):
    """On six images; the boxes are the same with one thread and with several."""
    best = []
    for row in voc_rows:
        image = decode_image(row["image"])
        boxes, _ = edge_boxes(image)
        objects = find_objects(decode_mask(row["class_mask"]), decode_mask(row["object_mask"]), min_side=32)
        best += list(iou(np.array([o.box for o in objects]), boxes).max(axis=1))
    assert len(best) >= 6
    assert np.mean(np.array(best) >= 0.5) >= 0.85  # measured: 16 of 18
    assert np.mean(best) >= 0.7
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1 if before > 1 else 2)
        again, _ = edge_boxes(image)
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(again, boxes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": "Forest"}, "edges is 'Forest', and must be forest or gradient"),  # would be taken for the gradient
        ({"max_boxes": 0}, "max_boxes is 0, and must be at least 1"),
        ({"max_boxes": -1}, "max_boxes is -1"),  # would leave out the last box
        ({"beta": 75}, "beta is 75, and must be from 0 to 1"),
        ({"edge_gain": float("nan")}, "edge_gain is nan, and must be above 0"),
        ({"alpha": 2, "kappa": 0}, "alpha is 2, and must be from 0 to 1; kappa is 0, and must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        edge_boxes(rectangle(), **options)


def test_boxes_that_reach_beyond_the_image_end_at_its_edges(monkeypatch):
    image = rectangle()
    height, width = image.shape[:2]
    found = np.array([[-3.0, -2, width + 5, height + 4], [0, 0, 30, 20]]), np.array([0.5, 0.2])
    monkeypatch.setattr(edgebox, "_search", lambda *_: found)
    boxes, _ = find_boxes(image, EdgeBoxOptions(edges="gradient", soft_nms_strength=0))
    assert boxes.tolist() == [[0, 0, width, height], [0, 0, 30, 20]]
