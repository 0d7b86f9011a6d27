"""Calling the server's application as a web server does, without one; and predictors that need no model."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deconvnet.datasets.palette import class_palette
from deconvnet.serving.app import ServingApp
from deconvnet.serving.http import Answer, Reply, error_reply
from deconvnet.serving.limits import Limits
from deconvnet.serving.routing import LoadedModel
from deconvnet.tracking.registry import Version
from proposals.image_codec import encode_mask

CLASSES = ("background", "cat")
PNG = encode_mask(np.eye(4, dtype=np.uint8), class_palette(True))
FOREVER = None
"""In the chunks of a body: the client sends nothing more, and stays."""
GONE = "gone"
"""In the chunks of a body: the client goes."""
PHOTO = [b"a", b"photo"]


def loaded(number: int | str, classes: tuple[str, ...] = CLASSES, name: str = "net") -> LoadedModel:
    return LoadedModel(Version(name, str(number), f"id {name} {number}", "nowhere"), classes, True)


@dataclass
class Predictors:
    """Predicts the same mask for every image, except for text. While `open` is not set, it goes on predicting.

    Attributes:
        calls: numbers of the versions that were asked, or of both that were compared.
        options: `with_overlay` and `keep_mask` of each prediction.
    """

    open: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    options: list[tuple[bool, bool]] = field(default_factory=list)
    cancelled: int = 0
    different: float | Exception = 0.25
    error: Exception | None = None

    async def asked(self, times: int) -> None:
        """Let the other tasks run until there were so many calls."""
        while len(self.calls) < times:
            await asyncio.sleep(0)

    async def predict(self, version: Version, data: bytes, with_overlay: bool, keep_mask: bool) -> Answer:
        self.calls.append(version.number)
        self.options.append((with_overlay, keep_mask))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        if data == b"text":
            return Answer(error_reply(400, "the image can't be used: not an image"))
        reply = Reply(200, "image/png", PNG, {"X-Confidence": "0.750"})
        return Answer(reply, {"crf": 0.5}, 0.75, {"background": 0.75, "cat": 0.25}, 30, PNG if keep_mask else None)

    async def different_pixels(self, model: LoadedModel, data: bytes, other: LoadedModel, mask: bytes) -> float:
        self.calls.append(f"{model.version.number} against {other.version.number}")
        if isinstance(self.different, Exception):
            raise self.different
        return self.different


@dataclass
class Received:
    """What a client has received.

    Attributes:
        status: status code, 0 if there was no reply.
        chunks: number of the chunks of its body that were read.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: int = 0
    complete: bool = False


async def call(
    application: Any,
    method: str = "POST",
    path: str = "/",
    body: Iterable[Any] = (b"",),
    query: str = "",
    **headers: str,
) -> Received:
    """Send a request whose body consists of chunks, and return what comes back. At an event, the client waits for it."""
    chunks, received = list(body), Received()

    async def receive() -> dict[str, Any]:
        if chunks and isinstance(chunks[0], asyncio.Event):
            await chunks.pop(0).wait()
        if not chunks or chunks[0] is FOREVER:
            await asyncio.Event().wait()
        if (chunk := chunks.pop(0)) == GONE:
            return {"type": "http.disconnect"}
        received.chunks += 1
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            received.status = message["status"]
            received.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            received.body += message["body"]
            received.complete = not message.get("more_body", False)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    await application(scope, receive, send)
    return received


def made(predictors: Predictors | None = None, ready: bool = True, limits: Limits | None = None, **options: Any) -> ServingApp:
    """A server with version 1, whose processes predict at once if they are `ready`."""
    predictors = predictors or Predictors()
    if ready:
        predictors.open.set()
    return ServingApp(predictors, loaded(1), limits or Limits(max_bytes=20_000), **options)


def ask(app: ServingApp, *arguments: Any, **named: Any) -> Received:
    return asyncio.run(call(app, *arguments, **named))


def error(received: Received) -> str:
    assert received.complete and received.headers["content-type"] == "application/json"
    return json.loads(received.body)["error"]
