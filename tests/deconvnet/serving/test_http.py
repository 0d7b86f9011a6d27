"""The replies of a server, without one: masks, overlays, headers, errors, the page; and the routes and limits of a replica."""

import asyncio
import io
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference.saved_ensemble import Prediction, SavedEnsemble
from deconvnet.serving import http
from deconvnet.serving.ray_serve import Replica, ServedModel, check_installed, failure_reason, measure_latency
from deconvnet.tracking import registry
from infra.errors import UserError
from proposals.image_codec import encode_jpeg
from tests.deconvnet.ensembles import EDGES, SEGMENT, random_image, save_networks

CLASSES = ("background", "dîner, table", "<bar>")
PHOTO = encode_jpeg(random_image(0, 60, 80))


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    folder = tmp_path_factory.mktemp("ensemble")
    save_networks(folder, CLASSES)
    options = {"classes": CLASSES, "proposals": EDGES, "segment": SEGMENT, "max_pixels": 10_000}
    (folder / "options.json").write_text(json.dumps(options))
    return SavedEnsemble(str(folder))


def timings(text: str) -> dict[str, float]:
    return {part.split(";dur=")[0]: float(part.split(";dur=")[1]) for part in text.split(", ")}


def test_the_headers_name_only_the_classes_in_the_mask() -> None:
    class Two:
        classes = CLASSES
        background = True

        def predict(self, data: bytes) -> Prediction:
            mask = np.zeros((4, 6), np.uint8)
            mask[1, 2] = 2
            return Prediction(np.zeros((4, 6, 3), np.uint8), mask, 0.75)

    headers = http.prediction_reply(Two(), b"", time.perf_counter()).headers  # type: ignore[arg-type]
    assert headers["X-Classes"] == "background,%3Cbar%3E" and headers["X-Size"] == "6x4" and headers["X-Confidence"] == "0.750"


def test_a_mask_is_a_paletted_png_with_headers_about_the_prediction(ensemble: SavedEnsemble) -> None:
    reply = http.prediction_reply(ensemble, PHOTO, time.perf_counter() - 2)
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
    spent = timings(reply.headers["Server-Timing"])
    assert list(spent) == ["wait", "label", "picture"] and 2000 <= spent["wait"] < 3000 and spent["label"] > spent["picture"] >= 0
    for value in reply.headers.values():
        value.encode("latin-1")  # what a header may hold


def test_an_overlay_shows_the_image_with_its_mask(ensemble: SavedEnsemble) -> None:
    reply = http.prediction_reply(ensemble, PHOTO, time.perf_counter(), with_overlay=True)
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
    reply = http.prediction_reply(ensemble, data, time.perf_counter())
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


# A replica as Ray Serve calls it, with requests as Ray Serve makes them.


@pytest.fixture
def replica(ensemble: SavedEnsemble) -> Replica:
    made = object.__new__(Replica)  # its model is here already
    made.model = ServedModel(registry.Version("shapes", "2", "id", "nowhere"), "store", max_bytes=20_000)
    made.ensemble = ensemble
    made.worker = ThreadPoolExecutor(1)
    return made


def ask(
    replica: Replica, method: str = "POST", path: str = "/", query: str = "", body: list[bytes] | None = None, **headers: str
) -> Response:
    chunks = list(body or [b""])
    read = []

    async def receive() -> dict:
        read.append(chunks.pop(0))
        return {"type": "http.request", "body": read[-1], "more_body": bool(chunks)}

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        "server": ("127.0.0.1", 8000),
    }
    reply = asyncio.run(replica(Request(scope, receive)))
    reply.chunks_read = len(read)
    return reply


def test_a_replica_replies_with_masks_overlays_health_and_page(replica: Replica) -> None:
    mask = ask(replica, body=[PHOTO[:1000], PHOTO[1000:]])
    assert (
        mask.status_code == 200 and mask.headers["content-type"] == "image/png" and mask.headers["x-model"] == "shapes version 2"
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask.body))), replica.ensemble.predict(PHOTO).mask)
    assert ask(replica, query="overlay=1", body=[PHOTO]).headers["content-type"] == "image/jpeg"
    health = ask(replica, "GET", "/healthz")
    assert json.loads(health.body) == {"status": "ok", "model": "shapes version 2", "classes": list(CLASSES)}
    assert ask(replica, "GET", "/").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        ({"path": "/other"}, 404, "nothing at /other"),
        ({"method": "PUT"}, 405, "PUT is not supported"),
        ({"path": "/healthz"}, 405, "POST is not supported"),
        ({"query": "overlay=perhaps"}, 400, "overlay=perhaps is neither"),
        ({"content_type": "multipart/form-data; boundary=x", "body": [b"--x"]}, 415, "the body is a form"),
        ({"body": [b""]}, 400, "the body is empty"),
        ({"body": [b"text"]}, 400, "not an image"),
    ],
)
def test_a_replica_refuses_with_a_status_and_a_message(replica: Replica, call: dict, status: int, sentence: str) -> None:
    reply = ask(replica, **call)
    assert reply.status_code == status and sentence in json.loads(reply.body)["error"]


def test_a_body_that_is_too_large_is_not_read_to_its_end(replica: Replica) -> None:
    told = ask(replica, content_length="20001", body=[b"x" * 10_000] * 4)
    assert told.status_code == 413 and told.chunks_read == 0
    untold = ask(replica, body=[b"x" * 10_000] * 9)
    assert untold.status_code == 413 and untold.chunks_read == 3
    assert ask(replica, content_length="20000", body=[b"x" * 10_000] * 2).status_code == 400


def test_a_missing_ray_serve_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.serve", None)
    with pytest.raises(UserError, match=r"Ray Serve is not installed; .*: pip install -c constraints\.txt -e '\.\[serve\]'"):
        check_installed()


def test_the_reason_of_a_failed_replica_is_its_last_exception() -> None:
    report = """Deploying application deconvnet failed: Failed to update the deployments ['replica'].
Traceback (most recent call last):
  File "/x/registry.py", line 71, in fetch
    raise UserError("models:/shapes/2 can't be fetched: no such file") from error
infra.errors.UserError: models:/shapes/2 can't be fetched: no such file"""
    assert failure_reason(report) == "models:/shapes/2 can't be fetched: no such file"
    assert failure_reason("no room") == "no room"


def test_the_registered_model_predicts_the_same_png(ensemble: SavedEnsemble) -> None:
    from deconvnet.tracking.pyfunc_model import EnsembleModel

    model = EnsembleModel()
    model.ensemble = ensemble
    answer = model.predict(None, pd.DataFrame({"image": [PHOTO, b"text"]}))
    assert answer["mask"][0] == http.prediction_reply(ensemble, PHOTO, 0.0).body
    assert answer["mask"][1] is None and answer["error"].tolist() == [None, "not an image"]


@pytest.mark.parametrize("status", [400, 413, 500, 502, 503, 504])
def test_a_server_that_fails_on_the_test_image_is_refused_and_one_that_declines_it_is_not(status, monkeypatch):
    def answer(*_, **__):
        raise urllib.error.HTTPError("http://x", status, "", {}, io.BytesIO(b"RuntimeError: out of memory"))

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    if status in (500, 502, 504):
        with pytest.raises(UserError, match=rf"can't predict a test image \(HTTP status {status}\): RuntimeError: out of memory"):
            measure_latency("http://x")
    else:
        assert measure_latency("http://x") is None
