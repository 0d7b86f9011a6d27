"""Arrays and tensors that would give a wrong result silently are refused in a sentence, or converted where they have one meaning."""

import numpy as np
import pandas as pd
import pytest
import torch

from deconvnet import DeconvNet, FCN8s
from deconvnet.crf import dense_crf
from deconvnet.datasets.objects import make_object_mask
from deconvnet.datasets.overlay import overlay
from deconvnet.evaluation.breakdowns import object_ious
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.ensemble import combine
from deconvnet.inference.instances import segment_instances, whole_image_scores
from deconvnet.inference.predictor import Predictor
from deconvnet.models.preprocessing import prepare
from deconvnet.training.data.transforms import square_canvas, square_crop

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
MASK = np.zeros((12, 16), np.uint8)
SCORES = np.random.default_rng(1).normal(0, 3, (4, 12, 16)).astype(np.float32)
P = np.exp(SCORES) / np.exp(SCORES).sum(axis=0)
WRONG_IMAGES = [RGB / 255, RGB.astype(np.float32), RGB[..., 0], RGB.transpose(2, 0, 1), RGB > 99, RGB.astype(np.uint16)]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return DeconvNet(num_classes=4, width=0.0625, input_size=32).eval(), FCN8s(num_classes=4, width=0.0625).eval()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_the_crf_takes_floats_of_any_size(dtype):
    found = dense_crf(RGB, P.astype(dtype))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense_crf(RGB, P), atol=2e-2)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_the_crf_takes_one_hot_labels(dtype):
    one_hot = P.argmax(0) == np.arange(4)[:, None, None]
    np.testing.assert_array_equal(dense_crf(RGB, one_hot.astype(dtype)), dense_crf(RGB, one_hot.astype(np.float32)))


def test_the_crf_takes_probabilities_that_are_rounded_or_have_a_lower_limit():
    for p in (np.maximum(P, 1e-4), np.round(P, 3), P * 1.005):
        assert np.isfinite(dense_crf(RGB, p)).all()


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (SCORES, r"are from -\d.* expected 0 to 1 .*softmax of the scores \(logits\)"),
        (np.log(P), "softmax of the scores"),
        (1 / (1 + np.exp(-SCORES)), r"sum to .* at row \d+, column \d+; .*divide them by their sum"),
        (P * 255, "divide them by their sum"),
        ((P * 255).astype(np.uint8), "divide them by their sum"),
        (np.zeros_like(P), "sum to 0"),
        (np.where(P.max() == P, np.nan, P), "finite"),
        (np.where(P.max() == P, np.inf, P), "finite"),
        (P.transpose(1, 2, 0), r"expected \(C, 12, 16\).*transpose\(2, 0, 1\)"),
        (P.transpose(0, 2, 1), r"are \(4, 16, 12\); expected \(C, 12, 16\)"),
        (P[:, :6], r"are \(4, 6, 16\)"),
        (P[0], r"are \(12, 16\)"),
        (P[None], r"are \(1, 4, 12, 16\)"),
        (P[:0], r"are \(0, 12, 16\)"),
        (torch.from_numpy(P), "probabilities is a Tensor; expected a numpy array"),
        (P.tolist(), "probabilities is a list"),
        (P.astype(np.complex64), "expected a numpy array of floats"),
    ],
)
def test_what_is_no_probability_is_refused_by_the_crf(probabilities, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(RGB, probabilities)


def test_probabilities_with_the_classes_last_are_found_out_in_a_square_image():
    """C = H = W: the shape fits, so the sums tell."""
    scores = np.random.default_rng(2).normal(0, 3, (8, 8, 8))
    last = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    with pytest.raises(ValueError, match="sum of 1 over the classes"):
        dense_crf(np.zeros((8, 8, 3), np.uint8), last)


@pytest.mark.parametrize(
    "keywords", [{"xy_sigma": np.nan}, {"bilateral_weight": np.nan}, {"xy_sigma": np.inf}, {"iterations": 0}]
)
def test_numbers_of_the_crf_out_of_range_are_refused(keywords):
    with pytest.raises(ValueError, match="must be positive"):
        dense_crf(RGB, P, **keywords)


@pytest.mark.parametrize("image", WRONG_IMAGES)
def test_images_of_another_kind_are_refused_by_all_that_predict(networks, image):
    boxes = np.array([[1, 1, 9, 9]], np.float32)
    functions = [
        lambda: dense_crf(image, P),
        lambda: segment_instances(networks[0], image, boxes),
        lambda: whole_image_scores(networks[1], image),
        lambda: Predictor(*networks).predict(image, boxes),
        lambda: overlay(image, MASK, ["background"]),
        lambda: square_canvas(image, MASK, 8),
    ]
    for function in functions:
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), RGB"):
            function()


def test_boxes_of_another_kind_are_refused_by_the_predictor(networks):
    for boxes in ([[9, 1, 1, 9]], np.zeros((4, 5)), [[0, 0, np.nan, 1]]):
        with pytest.raises(ValueError, match="expected"):
            Predictor(*networks).probabilities(RGB, boxes, ["deconvnet"])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 32, dtype=torch.int64),
        torch.zeros(3, 32, 32),
        torch.zeros(1, 32, 32, 3),
        torch.zeros(1, 1, 32, 32),
        torch.zeros(1, 4, 32, 32),
    ],
)
def test_networks_refuse_input_that_was_not_prepared(networks, images):
    for network in networks:
        with pytest.raises(ValueError, match=r"expected floats \(N, 3, H, W\)"):
            network(images)


def test_deconvnet_refuses_images_of_another_size(networks):
    with pytest.raises(ValueError, match="input size 32"):
        networks[0](torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    "images", [torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(3, 8, 8).byte()]
)
def test_prepare_refuses_floats_and_other_orders_of_the_axes(images):
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 3, H, W\), RGB with values from 0 to 255"):
        prepare(images, "caffe")


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 4]], [[0, 1]], "truth has ids 0–4, the classes are 0–3 and 255"),
        ([[0, -1]], [[0, 1]], "truth has ids -1–0"),
        ([[0, 1]], [[0, 255]], "prediction has ids 0–255"),
        ([[0, 1]], [[0.2, 0.9]], "prediction is float64 .*arg max"),
        ([[0.0, 1.5]], [[0, 1]], "truth is float64"),
        ([[0, 1]], [[0], [1]], "truth is"),
    ],
)
def test_labels_that_are_no_class_ids_are_refused_and_nothing_is_counted(truth, prediction, message):
    matrix = ConfusionMatrix(4)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(truth), np.array(prediction))
    assert not matrix.matrix.any()


def test_labels_of_any_integer_type_are_counted():
    for dtype in (np.uint8, np.int64, np.uint64, bool):
        counts = ConfusionMatrix(4).update(np.array([0, 1, 1], dtype), np.array([0, 1, 0], dtype)).matrix
        assert counts[:2, :2].tolist() == [[1, 0], [1, 1]]


def test_shares_in_place_of_counts_are_refused():
    assert ConfusionMatrix(2, np.eye(2)).matrix.tolist() == [[1, 0], [0, 1]]
    for matrix in (np.full((2, 2), 0.25), np.full((2, 2), np.nan), np.array([[1, 0], [0, 0.5]])):
        with pytest.raises(ValueError, match="not whole numbers"):
            ConfusionMatrix(2, matrix)


@pytest.mark.parametrize("other", [MASK[:6], MASK.astype(np.int32), MASK.astype(np.float32), RGB])
def test_masks_of_another_kind_or_size_are_refused(other):
    functions = [
        lambda: object_ious(MASK, other, {}),
        lambda: object_ious(MASK, MASK, {"fcn8s": other}),
        lambda: make_object_mask(MASK, other),
        lambda: overlay(RGB, other, ["background"]),
        lambda: square_crop(RGB, other, 4),
        lambda: square_canvas(RGB, other, 8),
    ]
    for function in functions:
        with pytest.raises(ValueError, match=r"expected ids|must be the same"):
            function()


def test_scores_of_the_ensemble_are_checked():
    with pytest.raises(ValueError, match=r"fcn_weight 50; expected .* from 0 to 1"):
        combine(SCORES, SCORES, fcn_weight=50)
    with pytest.raises(ValueError, match=r"expected \(C, H, W\)"):
        combine(SCORES[None], SCORES[None])


@pytest.mark.parametrize(
    "model_input", [pd.DataFrame({"photo": [b""]}), [b""], b"", {"image": [b""]}, np.zeros((4, 4, 3), np.uint8)]
)
def test_the_registered_model_says_what_it_takes(model_input):
    from deconvnet.tracking.pyfunc_model import EnsembleModel

    with pytest.raises(ValueError, match=r'expected a pandas frame with a column "image" of image files'):
        EnsembleModel().predict(None, model_input)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), "expected the bytes of an image file, got ndarray"),
        (None, "got NoneType"),
        (float("nan"), "got float"),
        ("photo.jpg", "text that is not base64"),
        ("/data/photo/abcd", "not an image"),  # valid base64 by chance
        (b"", "the file is empty"),
        (b"not an image", "not an image"),
    ],
)
def test_the_registered_model_gives_a_reason_for_each_value_that_is_no_image(value, reason):
    from deconvnet.inference.saved_ensemble import SavedEnsemble
    from deconvnet.tracking.pyfunc_model import EnsembleModel

    model = EnsembleModel()
    model.ensemble = SavedEnsemble.__new__(SavedEnsemble)
    model.ensemble.max_pixels = 10**6
    found = model.predict(None, pd.DataFrame({"image": pd.Series([value], dtype=object)}))
    assert found["mask"][0] is None and reason in found["error"][0]
