"""What a server answers: masks and overlays with what was seen and how long it took, refusals in a sentence, a page, a sign of life.

Plain values in and out: neither Ray nor a web framework is needed. `serving_app` puts it behind Ray Serve.
"""

import html
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from infra.errors import BadInput
from proposals.image_codec import encode_jpeg, encode_mask

if TYPE_CHECKING:
    from deconvnet.inference.saved_ensemble import SavedEnsemble

HOW_TO_SEND = "send a photograph's bytes as the body: curl --data-binary @photo.jpg"
_OVERLAY_QUALITY = 90
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    media_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def answer(ensemble: "SavedEnsemble", data: bytes, arrived: float, *, draw: bool = False) -> Reply:
    """The labels of a photograph's file: a paletted PNG of class ids, or (draw) a JPEG of the photograph with them over it.

    Headers: X-Size (WIDTHxHEIGHT, px, as displayed), X-Classes (those found, by id, percent-encoded, with commas between),
    X-Confidence (mean over the pixels, 0–1), Server-Timing (ms: `wait` from `arrived`, of time.perf_counter(), to the work's
    begin; `label`; `picture`). 400 with the reason where the photograph can't be used.
    """
    begun = time.perf_counter()
    try:
        seen = ensemble.predict(data)
    except BadInput as error:
        return refusal(400, f"not a photograph that can be labelled: {error}")
    labelled = time.perf_counter()
    if draw:
        media_type, body = "image/jpeg", encode_jpeg(overlay(seen.image, seen.mask, ensemble.classes), _OVERLAY_QUALITY)
    else:
        media_type, body = "image/png", encode_mask(seen.mask, VOC_PALETTE)
    spent = {"wait": begun - arrived, "label": labelled - begun, "picture": time.perf_counter() - labelled}
    headers = {
        "X-Size": f"{seen.mask.shape[1]}x{seen.mask.shape[0]}",
        "X-Classes": ",".join(quote(ensemble.classes[i], safe=" /") for i in np.unique(seen.mask)),
        "X-Confidence": f"{seen.confidence:.3f}",
        "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in spent.items()),
    }
    return Reply(200, media_type, body, headers)


def refusal(status: int, sentence: str) -> Reply:
    """JSON with one sentence, `error`."""
    return Reply(status, "application/json", json.dumps({"error": sentence}, ensure_ascii=False).encode())


def health(model: str, classes: Sequence[str]) -> Reply:
    """JSON: `status` (ok), `model`, `classes` by id."""
    told = {"status": "ok", "model": model, "classes": list(classes)}
    return Reply(200, "application/json", json.dumps(told, ensure_ascii=False).encode())


def wants_overlay(value: str) -> bool:
    """What ?overlay=VALUE means. Raises ValueError for what is neither yes nor no."""
    if value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"overlay={value} is neither 1 nor 0")


def page(model: str, classes: Sequence[str]) -> Reply:
    """A page that says what the server is, and labels a photograph that is dropped on it or chosen."""
    colours = (f"rgb({r} {g} {b})" for r, g, b in VOC_PALETTE[: len(classes)].tolist())
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{html.escape(name)}</li>'
        for name, colour in zip(classes, colours, strict=False)  # a palette has 256 colours
    )
    return Reply(200, "text/html; charset=utf-8", _PAGE.replace("MODEL", html.escape(model)).replace("LEGEND", legend).encode())


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>MODEL</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; display: block; margin: 1rem 0 }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem }
i { display: inline-block; width: 1em; height: 1em; margin-right: .4em; vertical-align: -.15em; border: 1px solid #888 }
code { background: #eee; padding: .1em .3em }
</style>
<h1>MODEL</h1>
<p>Labels every pixel of a photograph with a class. Choose one, or drop it here:
<input type="file" id="photo" accept="image/*"></p>
<p id="said" role="status"></p>
<img id="seen" alt="" hidden>
<ul>LEGEND</ul>
<p>By program: <code>curl --data-binary @photo.jpg URL -o mask.png</code> (class ids, paletted);
<code>URL?overlay=1</code> gives this picture.</p>
<script>
const said = document.getElementById("said"), seen = document.getElementById("seen");
const here = location.origin + location.pathname;
for (const code of document.querySelectorAll("code")) code.textContent = code.textContent.replace("URL", here);
async function label(photo) {
  if (!photo) return;
  said.textContent = "…";
  try {
    const reply = await fetch("?overlay=1", { method: "POST", body: photo });
    seen.hidden = !reply.ok;
    if (!reply.ok) { said.textContent = (await reply.json()).error; return; }
    const spent = Math.round(+reply.headers.get("Server-Timing").match(/label;dur=([0-9.]+)/)[1]);
    const found = reply.headers.get("X-Classes").split(",").map(decodeURIComponent).join(", ");
    seen.src = URL.createObjectURL(await reply.blob());
    said.textContent = `${found}: ${spent} ms`;
  } catch (error) { said.textContent = `no answer: ${error.message}`; }
}
document.getElementById("photo").addEventListener("change", event => label(event.target.files[0]));
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => { event.preventDefault(); label(event.dataTransfer.files[0]); });
</script>
</html>
"""
