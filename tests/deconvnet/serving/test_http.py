"""The replies of a server, without one: masks, overlays, headers, errors, the page."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference.saved_ensemble import Prediction, SavedEnsemble
from deconvnet.serving import http
from proposals.image_codec import encode_jpeg
from tests.deconvnet.ensembles import EDGES, SEGMENT, prediction, random_image, save_networks

CLASSES = ("background", "dîner, table", "<bar>")
PHOTO = encode_jpeg(random_image(0, 60, 80))


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    folder = tmp_path_factory.mktemp("ensemble")
    save_networks(folder, CLASSES)
    options = {"classes": CLASSES, "proposals": EDGES, "segment": SEGMENT, "max_pixels": 10_000}
    (folder / "options.json").write_text(json.dumps(options))
    return SavedEnsemble(str(folder))


def test_server_timing_names_what_the_parts_leave_as_waiting() -> None:
    assert http.timing_header({"crf": 0.5, "encode": 0.25}, 2.0) == "wait;dur=1250.0, crf;dur=500.0, encode;dur=250.0"
    assert http.timing_header({"crf": 0.5}, 0.4) == "wait;dur=0.0, crf;dur=500.0"


def test_the_headers_name_only_the_classes_in_the_mask() -> None:
    class Two:
        classes = CLASSES
        background = True

        def predict(self, data: bytes) -> Prediction:
            mask = np.zeros((4, 6), np.uint8)
            mask[1, 2] = 2 if data else 0
            return prediction(np.zeros((4, 6, 3), np.uint8), mask, 0.75)

    answer = http.predict(Two(), b"x")  # type: ignore[arg-type]
    headers = answer.reply.headers
    assert answer.shares == {"background": pytest.approx(23 / 24), "<bar>": pytest.approx(1 / 24)} and answer.confidence == 0.75
    assert headers["X-Classes"] == "background,%3Cbar%3E" and headers["X-Size"] == "6x4" and headers["X-Confidence"] == "0.750"
    assert headers["X-Uncertainty"] == "confidence_before_crf=0.625, entropy=0.250, disagreement=0.000, boundary_doubt=0.000"
    assert headers["X-Class-Confidence"] == "0.625,0.625"
    one_class = http.predict(Two(), b"").reply.headers  # type: ignore[arg-type]
    assert one_class["X-Uncertainty"] == "confidence_before_crf=0.625, entropy=0.250, disagreement=0.000"


def test_an_overlay_that_is_longer_than_a_jpeg_can_be_is_scaled_down() -> None:
    long = prediction(np.zeros((2, 65_600, 3), np.uint8), np.ones((2, 65_600), np.uint8), 0.75)
    ensemble = SimpleNamespace(classes=CLASSES, background=True, predict=lambda data: long)
    answer = http.predict(ensemble, b"x", with_overlay=True)  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(answer.reply.body)).size == (65_500, 2) and answer.reply.headers["X-Size"] == "65600x2"


def test_a_mask_is_a_paletted_png_with_headers_about_the_prediction(ensemble: SavedEnsemble) -> None:
    answer = http.predict(ensemble, PHOTO)
    reply = answer.reply
    expected = ensemble.predict(PHOTO)
    image = Image.open(io.BytesIO(reply.body))
    assert (reply.status, reply.media_type, image.format, image.mode) == (200, "image/png", "PNG", "P")
    np.testing.assert_array_equal(np.asarray(image), expected.mask)
    ids = np.unique(expected.mask).tolist()
    assert len(ids) > 1, "a mask of one class would prove little"
    np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3)[ids], VOC_PALETTE[ids])
    encoded = ("background", "d%C3%AEner%2C table", "%3Cbar%3E")
    assert reply.headers["X-Classes"].split(",") == [encoded[i] for i in ids]
    assert reply.headers["X-Size"] == "80x60" and float(reply.headers["X-Confidence"]) == pytest.approx(
        expected.confidence, abs=1e-3
    )
    assert list(answer.seconds) == ["decode", "proposals", "fcn8s", "deconvnet", "crf", "encode", "other"]
    assert min(answer.seconds.values()) >= 0
    assert reply.headers["X-Boxes"] == "4" and (answer.boxes, expected.boxes) == (4, 4), "as SEGMENT says"
    assert answer.mask is None and sum(answer.shares.values()) == pytest.approx(1)
    measures = expected.uncertainty
    assert f"disagreement={measures.image.disagreement:.3f}" in reply.headers["X-Uncertainty"]
    assert reply.headers["X-Class-Confidence"].split(",") == [f"{measures.classes[i].confidence_before_crf:.3f}" for i in ids]
    for value in reply.headers.values():
        value.encode("latin-1")  # what a header may hold


def test_an_overlay_shows_the_image_with_its_mask(ensemble: SavedEnsemble) -> None:
    answer = http.predict(ensemble, PHOTO, with_overlay=True, keep_mask=True)
    reply = answer.reply
    assert answer.mask == http.predict(ensemble, PHOTO).reply.body
    image = Image.open(io.BytesIO(reply.body))
    assert (reply.media_type, image.format, image.size, image.mode) == ("image/jpeg", "JPEG", (80, 60), "RGB")
    seen = ensemble.predict(PHOTO)
    drawn = overlay(seen.image, seen.mask, CLASSES).astype(int)
    assert np.abs(np.asarray(image) - drawn).mean() < 6 < np.abs(seen.image - drawn).mean()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text", "not an image"),
        (PHOTO[:900], "truncated"),
        (encode_jpeg(random_image(0, 120, 100)), "larger than 10,000 pixels"),
    ],
)
def test_an_image_that_can_not_be_used_is_refused_with_the_reason(ensemble: SavedEnsemble, data: bytes, reason: str) -> None:
    answer = http.predict(ensemble, data)
    reply = answer.reply
    assert (answer.confidence, answer.shares, answer.mask) == (None, {}, None)
    assert (reply.status, reply.media_type) == (400, "application/json")
    told = json.loads(reply.body)
    assert list(told) == ["error"] and reason in told["error"] and "\n" not in told["error"]


def test_the_page_names_model_and_classes_and_escapes_them() -> None:
    text = http.page_reply("shapes version 2", CLASSES).body.decode()
    assert "shapes version 2" in text and "dîner, table" in text
    assert "&lt;bar&gt;" in text and "<bar>" not in text
    assert "rgb(128 0 0)" in text, "VOC's colour of class 1"
    assert "http" not in text.replace("</html>", ""), "works offline"


@pytest.mark.parametrize(("value", "meant"), [("1", True), ("true", True), ("YES", True), ("", False), ("0", False)])
def test_overlay_is_parsed_as_yes_or_no(value: str, meant: bool) -> None:
    assert http.parse_overlay(value) is meant


def test_the_registered_model_predicts_the_same_png(ensemble: SavedEnsemble) -> None:
    from deconvnet.tracking.pyfunc_model import EnsembleModel

    model = EnsembleModel()
    model.ensemble = ensemble
    answer = model.predict(None, pd.DataFrame({"image": [PHOTO, b"text"]}))
    assert answer["mask"][0] == http.predict(ensemble, PHOTO).reply.body
    assert answer["mask"][1] is None and answer["error"].tolist() == [None, "not an image"]
