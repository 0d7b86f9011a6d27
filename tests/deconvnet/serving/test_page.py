"""The page to try the model on, in a real browser, with a model that always finds the same class."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from deconvnet.inference.saved_ensemble import Prediction
from deconvnet.serving import http
from deconvnet.serving.http import Reply
from infra.errors import BadInput
from tests.browser import Browser, browser, missing
from tests.deconvnet.ensembles import prediction

CLASSES = ("background", "dîner, table", "<b>bar</b>")
CHOOSE_FILE = """
const data = new DataTransfer(), input = document.getElementById("file");
data.items.add(new File([arguments[0]], "photo.jpg"));
input.files = data.files;
input.dispatchEvent(new Event("change"));
"""
DROP_FILE = """
const data = new DataTransfer();
data.items.add(new File([arguments[0]], "photo.jpg"));
dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
"""


class ConstantEnsemble:
    """Predicts class 1 in the middle of every image."""

    classes = CLASSES
    background = True

    def predict(self, data: bytes) -> Prediction:
        if data == b"text":
            raise BadInput("not an image")
        mask = np.zeros((40, 60), np.uint8)
        mask[10:30, 20:40] = 1
        return prediction(np.full((40, 60, 3), 200, np.uint8), mask, 0.75)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send(http.page_reply("shapes version 2", CLASSES))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        overlay = "overlay=1" in self.path
        answer = http.predict(ConstantEnsemble(), data, with_overlay=overlay)  # type: ignore[arg-type]
        timing = {"Server-Timing": http.timing_header({"networks": 0.25, "crf": 0.5}, 7.0)}
        self.send(replace(answer.reply, headers={**answer.reply.headers, **timing}))

    def send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.media_type, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    """The page, opened in a browser."""
    if reason := missing():
        pytest.skip(reason)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with browser() as window:
        window.open(f"http://127.0.0.1:{server.server_port}/")
        yield window
    server.shutdown()


def test_the_page_shows_model_classes_and_how_to_call_the_server(page: Browser) -> None:
    assert "shapes version 2" in page.text() and "dîner, table" in page.text() and "<b>bar</b>" in page.text()
    assert "curl --data-binary @photo.jpg http://127.0.0.1:" in page.text()


@pytest.mark.parametrize("give", [CHOOSE_FILE, DROP_FILE], ids=["chosen", "dropped"])
def test_an_image_is_shown_with_its_mask_its_classes_and_the_time_without_waiting(page: Browser, give: str) -> None:
    page.run("document.getElementById('status').textContent = ''; document.getElementById('result').removeAttribute('src')")
    page.run(give, "image")
    assert page.wait("const i = document.getElementById('result'); return i.complete && i.naturalWidth") == 60
    said = page.wait("return document.getElementById('status').textContent.replace('…', '')")
    assert said == "background, dîner, table: 750 ms"


def test_a_file_that_is_no_image_shows_the_error(page: Browser) -> None:
    page.run(CHOOSE_FILE, "text")
    assert (
        page.wait("return document.getElementById('status').textContent.replace('…', '')")
        == "the image can't be used: not an image"
    )
    assert page.run("return document.getElementById('result').hidden")
