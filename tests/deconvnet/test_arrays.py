"""Arrays and tensors that would silently give a wrong result are refused in a sentence, or converted if they have one meaning."""

import numpy as np
import pandas as pd
import pytest
import torch

from deconvnet import DeconvNet, FCN8s
from deconvnet.crf import dense_crf
from deconvnet.datasets.objects import make_object_mask
from deconvnet.datasets.overlay import overlay
from deconvnet.evaluation.breakdowns import object_ious
from deconvnet.inference.instances import segment_instances, whole_image_scores
from deconvnet.inference.predictor import Predictor
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
