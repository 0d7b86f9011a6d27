"""`SavedEnsemble`: it predicts as `Predictor` does, and refuses other folders."""

import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.palette import class_palette
from deconvnet.inference.predictor import Predictor, PredictorOptions
from deconvnet.inference.saved_ensemble import SavedEnsemble
from deconvnet.models.checkpoint import save_model
from deconvnet.serving.http import page_reply, predict
from infra.errors import BadInput, UserError
from proposals import edge_boxes
from proposals.image_codec import encode_jpeg
from tests.deconvnet.ensembles import CLASSES, EDGES, SEGMENT, random_image, random_networks


@pytest.fixture
def networks() -> tuple:
    return random_networks()


@pytest.fixture
def folder(tmp_path: Path, networks) -> Path:
    for name, network in zip(("deconvnet", "fcn8s"), networks, strict=True):
        save_model(network, str(tmp_path / name), CLASSES)
    options = {"classes": CLASSES, "proposals": EDGES, "segment": SEGMENT, "max_pixels": 10_000}
    (tmp_path / "options.json").write_text(json.dumps(options))
    return tmp_path


def test_masks_and_confidence_equal_those_of_the_predictor(folder: Path, networks) -> None:
    ensemble = SavedEnsemble(str(folder))
    found = ensemble.predict(encode_jpeg(random_image(0, 60, 80)))
    boxes, _ = edge_boxes(found.image, **EDGES)
    predictor = Predictor(*networks, PredictorOptions(**SEGMENT))
    np.testing.assert_array_equal(found.mask, predictor.predict(found.image, boxes).mask)
    probabilities = predictor.probabilities(found.image, boxes, ("edeconvnet_crf",))["edeconvnet_crf"]
    chosen = np.take_along_axis(probabilities, found.mask[None].astype(int), axis=0)
    assert found.confidence == pytest.approx(chosen.mean(dtype=float))
    again = predictor.predict(found.image, boxes)
    np.testing.assert_array_equal(found.confidence_map, again.confidence_map)
    assert found.uncertainty == again.uncertainty
    assert ensemble.classes == CLASSES


def test_an_ensemble_registered_before_forests_existed_keeps_its_edges(folder: Path, networks) -> None:
    options = json.loads((folder / "options.json").read_text())
    del options["proposals"]["edges"]
    (folder / "options.json").write_text(json.dumps(options))
    found = SavedEnsemble(str(folder)).predict(encode_jpeg(random_image(0, 60, 80)))
    boxes, _ = edge_boxes(found.image, **(EDGES | {"edges": "gradient", "edge_gain": 1.0, "soft_nms_strength": 0.0}))
    np.testing.assert_array_equal(found.mask, Predictor(*networks, PredictorOptions(**SEGMENT)).predict(found.image, boxes).mask)


def test_an_unusable_image_is_refused_with_a_reason(folder: Path, monkeypatch) -> None:
    with pytest.raises(BadInput, match=r"130×90 is larger than 10,000 pixels"):
        SavedEnsemble(str(folder)).predict(encode_jpeg(random_image(0, 90, 130)))
    assert SavedEnsemble(str(folder), max_pixels=20_000).predict(encode_jpeg(random_image(0, 90, 130))).mask.shape == (90, 130)
    with pytest.raises(BadInput, match="not an image"):
        SavedEnsemble(str(folder)).predict(b"text")

    def failing(*_: object, **__: object) -> None:
        raise cv2.error("OpenCV: too\n  large")

    monkeypatch.setattr("deconvnet.inference.saved_ensemble.edge_boxes", failing)
    with pytest.raises(BadInput, match="can't be segmented: OpenCV: too large"):
        SavedEnsemble(str(folder)).predict(encode_jpeg(random_image(0, 60, 80)))


@pytest.mark.parametrize("spoil", ["options.json", "fcn8s/model.json"])
def test_a_folder_that_is_not_an_ensemble_is_refused(folder: Path, spoil: str) -> None:
    (folder / spoil).unlink()
    with pytest.raises(UserError, match="is not an ensemble of this project"):
        SavedEnsemble(str(folder))


def test_swapped_networks_are_refused(folder: Path) -> None:
    (folder / "fcn8s").rename(folder / "x")
    (folder / "deconvnet").rename(folder / "fcn8s")
    (folder / "x").rename(folder / "deconvnet")
    with pytest.raises(UserError, match="should hold a DeconvNet and an FCN-8s"):
        SavedEnsemble(str(folder))


def test_importing_the_module_compiles_nothing_with_numba() -> None:
    """Numba raises at import if it has nowhere to write its cache, so the CRF must not be imported before there is a folder."""
    code = """
import numba.core.caching as caching
for kind in vars(caching).values():
    if isinstance(kind, type) and hasattr(kind, "_locator_classes"):
        kind._locator_classes = []
import deconvnet.inference.saved_ensemble
try:
    import deconvnet.crf
except RuntimeError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "refused", done.stderr


def test_windows_are_predicted_without_a_search_for_boxes_and_without_a_background(folder: Path, networks, monkeypatch) -> None:
    segment = SEGMENT | {"window_sizes": [1.0, 0.5], "window_overlap": 0.3, "aggregation": "mean", "background": False}
    options = {"classes": CLASSES, "proposals": EDGES | {"kind": "windows"}, "segment": segment, "max_pixels": 10_000}
    (folder / "options.json").write_text(json.dumps(options))
    monkeypatch.setattr("deconvnet.inference.saved_ensemble.edge_boxes", lambda *_, **__: pytest.fail("EdgeBox was run"))
    ensemble = SavedEnsemble(str(folder))
    found = ensemble.predict(encode_jpeg(random_image(0, 60, 80)))
    expected = Predictor(*networks, PredictorOptions(**segment)).predict(found.image, np.zeros((0, 4))).mask
    np.testing.assert_array_equal(found.mask, expected)
    assert ensemble.background is False


def test_the_mask_and_the_page_have_the_colours_of_data_without_a_background(folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    replies = {}
    for background in (True, False):
        (folder / "options.json").write_text(json.dumps(options | {"segment": SEGMENT | {"background": background}}))
        ensemble = SavedEnsemble(str(folder))
        palette = class_palette(background)
        reply = predict(ensemble, encode_jpeg(random_image(0, 60, 80))).reply
        image = Image.open(io.BytesIO(reply.body))
        assert image.mode == "P" and image.getpalette()[:9] == palette[:3].ravel().tolist()
        page = page_reply("m", ensemble.classes, ensemble.background).body.decode()
        assert "rgb({} {} {})".format(*palette[0]) in page and ("rgb(0 0 0)" in page) == background
        replies[background] = predict(ensemble, encode_jpeg(random_image(0, 60, 80)), with_overlay=True).reply.body
    assert replies[True] != replies[False]
