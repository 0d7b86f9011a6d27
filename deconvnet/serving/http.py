"""The HTTP replies of a server: masks and overlays, errors, the health check and the page to try the model on.

Plain values in and out, without Ray or a web framework; `ray_serve` connects it to Ray Serve.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from infra.errors import BadInput
from proposals.image_codec import encode_jpeg, encode_mask

if TYPE_CHECKING:
    from jinja2 import Template

    from deconvnet.inference.saved_ensemble import SavedEnsemble

USAGE = "send an image file as the body: curl --data-binary @photo.jpg"
"""How to call the server, for error messages."""
_JPEG_QUALITY = 90
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Reply:
    """An HTTP reply.

    Attributes:
        status: HTTP status code.
        media_type: content type of the body.
        body: the body.
        headers: further headers.
    """

    status: int
    media_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def prediction_reply(ensemble: "SavedEnsemble", data: bytes, received: float, *, with_overlay: bool = False) -> Reply:
    """Predict the mask of an image.

    Args:
        ensemble: the model.
        data: an encoded image (JPEG, PNG, …).
        received: when the request arrived, as `time.perf_counter()`.
        with_overlay: reply with a JPEG of the image with the mask drawn over it, instead of the mask.

    Returns:
        Status 200 with a paletted PNG of class ids (or the JPEG), and these headers:
        X-Size: width x height of the image as displayed, in pixels.
        X-Classes: the predicted classes in the order of their ids, percent-encoded, separated by commas.
        X-Confidence: mean over the pixels of the predicted class's probability, 0 to 1.
        Server-Timing: milliseconds spent waiting (`wait`), predicting (`label`) and encoding the reply (`picture`).
        Status 400 with the reason if the image can't be used.
    """
    started = time.perf_counter()
    try:
        prediction = ensemble.predict(data)
    except BadInput as error:
        return error_reply(400, f"the image can't be used: {error}")
    predicted = time.perf_counter()
    if with_overlay:
        media_type = "image/jpeg"
        body = encode_jpeg(overlay(prediction.image, prediction.mask, ensemble.classes), _JPEG_QUALITY)
    else:
        media_type, body = "image/png", encode_mask(prediction.mask, VOC_PALETTE)
    seconds = {"wait": started - received, "label": predicted - started, "picture": time.perf_counter() - predicted}
    headers = {
        "X-Size": f"{prediction.mask.shape[1]}x{prediction.mask.shape[0]}",
        "X-Classes": ",".join(quote(ensemble.classes[i], safe=" /") for i in np.unique(prediction.mask)),
        "X-Confidence": f"{prediction.confidence:.3f}",
        "Server-Timing": ", ".join(f"{name};dur={1000 * spent:.1f}" for name, spent in seconds.items()),
    }
    return Reply(200, media_type, body, headers)


def error_reply(status: int, message: str) -> Reply:
    """Return an error as JSON: `{"error": message}`."""
    return _json_reply(status, {"error": message})


def health_reply(model: str, classes: Sequence[str]) -> Reply:
    """Return the health check as JSON: `status` ("ok"), `model` (its name and version), `classes` (names by id)."""
    return _json_reply(200, {"status": "ok", "model": model, "classes": list(classes)})


def _json_reply(status: int, value: object) -> Reply:
    """Return a value as JSON in UTF-8."""
    return Reply(status, "application/json", json.dumps(value, ensure_ascii=False).encode())


def parse_overlay(value: str) -> bool:
    """Parse the query parameter `overlay`: 1, true or yes; 0, false, no or empty.

    Raises:
        ValueError: for any other value.
    """
    if value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"overlay={value} is neither 1 nor 0")


def page_reply(model: str, classes: Sequence[str]) -> Reply:
    """Return the page that says what the server is and predicts images that a visitor chooses or drops on it.

    Args:
        model: name and version of the model.
        classes: class names by id, shown with their colours.
    """
    colours = [f"rgb({red} {green} {blue})" for red, green, blue in VOC_PALETTE[: len(classes)].tolist()]
    html = _page_template().render(model=model, legend=list(zip(classes, colours, strict=False)))  # the palette has 256 colours
    return Reply(200, "text/html; charset=utf-8", html.encode())


@cache
def _page_template() -> "Template":
    """Load the page's template with its style and script; values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("deconvnet.serving"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("try_it.html")
