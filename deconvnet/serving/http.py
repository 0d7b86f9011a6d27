"""Build the server's HTTP replies: masks, overlays, errors, the health check and the page on which to try the model.

An overlay is the image with its mask drawn over it. The functions here take and return plain values. They need neither Ray nor a
web framework. `replica.py` calls `predict`, and `app.py` calls the others.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import class_palette
from deconvnet.inference.scaling import fit_in_jpeg
from infra.errors import BadInput
from infra.stopwatch import collect_timings, timed
from proposals.image_codec import encode_jpeg, encode_mask

if TYPE_CHECKING:
    from jinja2 import Template

    from deconvnet.inference.saved_ensemble import SavedEnsemble

USAGE = "send an image file as the body: curl --data-binary @photo.jpg"
"""Instructions for calling the server, added to error messages."""
_JPEG_QUALITY = 90
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Reply:
    """An HTTP reply.

    Attributes:
        status: HTTP status code.
        media_type: content type of the body, such as "image/png".
        body: content of the reply.
        headers: further HTTP headers, values by name.
    """

    status: int
    media_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A reply to a prediction request, with what the server counts of it.

    Attributes:
        reply: the HTTP reply. Only the header Server-Timing is missing.
        seconds: seconds spent on each part of the prediction, by name: `decode`, `proposals`, `fcn8s`, `deconvnet`, `crf`,
            `encode`, and `other`. {} if the image can't be used.
        confidence: mean over all pixels of the predicted class's probability, 0 to 1. None if the image can't be used.
        shares: share of the pixels of each class in the mask, by name. {} if the image can't be used.
        boxes: number of boxes, windows included, that DeconvNet segmented. 0 if the image can't be used.
        mask: the mask as a paletted PNG, if it was asked for.
    """

    reply: Reply
    seconds: dict[str, float] = field(default_factory=dict)
    confidence: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    boxes: int = 0
    mask: bytes | None = None


def predict(ensemble: "SavedEnsemble", data: bytes, *, with_overlay: bool = False, keep_mask: bool = False) -> Answer:
    """Predict the mask of an image and make an HTTP reply of it.

    Args:
        ensemble: the loaded model, which predicts the mask.
        data: an encoded image (JPEG, PNG, …).
        with_overlay: True to reply with a JPEG of the image with the mask drawn over it, False to reply with the mask.
        keep_mask: True if the caller needs the mask also if the reply is an overlay.

    Returns:
        If the image can be used, an answer whose reply has status 200. Its body is the mask as a paletted PNG of class ids, or
        the JPEG. It has these headers:

        * X-Size: width x height of the mask in pixels, with the image's EXIF orientation applied.
        * X-Classes: the predicted classes in the order of their ids, percent-encoded and separated by commas.
        * X-Confidence: mean over all pixels of the predicted class's probability after the CRF, 0 to 1.
        * X-Uncertainty: further measures of the image, see `uncertainty.Measures`, as "confidence_before_crf=0.912,
          entropy=0.041, disagreement=0.120, boundary_doubt=0.350". The last one is missing if the mask has one class.
        * X-Class-Confidence: mean probability, before the CRF, of the pixels of each class, in the order of X-Classes, separated
          by commas.
        * X-Boxes: number of boxes, windows included, that DeconvNet segmented.

        If the image can't be used, an answer whose reply has status 400 and the reason.
    """
    started = time.perf_counter()
    with collect_timings() as seconds:
        try:
            prediction = ensemble.predict(data)
        except BadInput as error:
            return Answer(error_reply(400, f"the image can't be used: {error}"))
        with timed("encode"):
            mask = encode_mask(prediction.mask, class_palette(ensemble.background)) if keep_mask or not with_overlay else None
            if with_overlay:
                media_type = "image/jpeg"
                drawn = overlay(prediction.image, prediction.mask, ensemble.classes, ensemble.background)
                body = encode_jpeg(fit_in_jpeg(drawn), _JPEG_QUALITY)
            else:
                media_type, body = "image/png", mask or b""
    seconds["other"] = time.perf_counter() - started - sum(seconds.values())
    pixels = np.bincount(prediction.mask.ravel(), minlength=len(ensemble.classes))
    found = np.flatnonzero(pixels)
    measures = asdict(prediction.uncertainty.image)
    del measures["confidence"]  # has a header of its own
    headers = {
        "X-Size": f"{prediction.mask.shape[1]}x{prediction.mask.shape[0]}",
        "X-Classes": ",".join(quote(ensemble.classes[i], safe=" /") for i in found),
        "X-Confidence": f"{prediction.confidence:.3f}",
        "X-Uncertainty": ", ".join(f"{name}={value:.3f}" for name, value in measures.items() if value is not None),
        "X-Class-Confidence": ",".join(f"{each.confidence_before_crf:.3f}" for each in prediction.uncertainty.classes.values()),
        "X-Boxes": str(prediction.boxes),
    }
    shares = {ensemble.classes[i]: float(pixels[i] / prediction.mask.size) for i in found}
    reply, kept = Reply(200, media_type, body, headers), mask if keep_mask else None
    return Answer(reply, seconds, prediction.confidence, shares, prediction.boxes, kept)


def timing_header(seconds: Mapping[str, float], total: float) -> str:
    """Make the value of the header Server-Timing, which browsers show in their developer tools.

    Args:
        seconds: seconds spent on each part of the prediction, by name.
        total: seconds from the arrival of the request to the end of the prediction.

    Returns:
        The milliseconds of waiting (`wait`), which is what the parts leave of the total, and of each part.
    """
    parts = {"wait": max(0.0, total - sum(seconds.values())), **seconds}
    return ", ".join(f"{name};dur={1000 * spent:.1f}" for name, spent in parts.items())


def error_reply(status: int, message: str) -> Reply:
    """Make a reply whose body is the JSON object `{"error": message}`.

    Args:
        status: HTTP status code, 400 or above.
        message: description of the error for the user.
    """
    return json_reply(status, {"error": message})


def health_reply(model: str, classes: Sequence[str], healthy: bool = True) -> Reply:
    """Make the reply to a health check.

    Args:
        model: name and version of the model.
        classes: class names in the order of their ids.
        healthy: whether the processes that predict are running.

    Returns:
        A reply with status 200, or 503 if the server is not healthy. Its body is a JSON object with the keys `status` ("ok" or
        "unavailable"), `model` and `classes`.
    """
    status, text = (200, "ok") if healthy else (503, "unavailable")
    return json_reply(status, {"status": text, "model": model, "classes": list(classes)})


def json_reply(status: int, value: object) -> Reply:
    """Make a reply whose body is a value as JSON, in UTF-8.

    Args:
        status: HTTP status code.
        value: any value that the module `json` can encode.
    """
    return Reply(status, "application/json", json.dumps(value, ensure_ascii=False).encode())


def parse_overlay(value: str) -> bool:
    """Parse the query parameter `overlay` of a request.

    With this parameter, a client asks for the image with the mask drawn over it, in place of the mask.

    Args:
        value: text of the parameter, in upper or lower case. "" if the request has no such parameter.

    Returns:
        True for "1", "true" and "yes". False for "0", "false", "no" and "".

    Raises:
        ValueError: for any other text.
    """
    if value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"overlay={value} is neither 1 nor 0")


def page_reply(model: str, classes: Sequence[str], background: bool = True) -> Reply:
    """Make the server's HTML page. A visitor chooses an image, or drops it onto the page, and sees its mask.

    Args:
        model: name and version of the model, shown on the page.
        classes: class names in the order of their ids. The page shows them with their colours in the masks.
        background: whether class 0 is the background, on which the colours depend.

    Returns:
        A reply with status 200 and the page as its body.
    """
    colours = [f"rgb({red} {green} {blue})" for red, green, blue in class_palette(background)[: len(classes)].tolist()]
    html = _page_template().render(model=model, legend=list(zip(classes, colours, strict=False)))  # the palette has 256 colours
    return Reply(200, "text/html; charset=utf-8", html.encode())


@cache
def _page_template() -> "Template":
    """Load the Jinja template of the HTML page. It is loaded once in each process, and escapes all values inserted into it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("deconvnet.serving"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("try_it.html")
