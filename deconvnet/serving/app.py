"""Receive the requests of a server's clients, limit them, and pass images on to the processes that predict.

`ServingApp` is an ASGI application: a web server calls it for each request. It does no heavy work, and answers health
checks itself, so it replies at once even if all predicting processes are busy. It needs neither Ray nor MLflow.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from deconvnet.serving import http
from deconvnet.serving.http import USAGE, Answer, Reply
from deconvnet.serving.limits import Disconnected, Limits, Receive, Refused, Uploads, discard_rest, retry_seconds
from deconvnet.serving.metrics import Metrics
from deconvnet.serving.routing import AnswerTotals, LoadedModel, Routes, ShadowTotals

if TYPE_CHECKING:
    from deconvnet.tracking.registry import Version

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]
"""An ASGI function that sends a part of the reply."""
PATHS = ("/", "/healthz", "/version", "/metrics")
"""Paths that exist. Images are posted to the first."""
_CLIENT_DISCONNECTED = 499  # status that is counted for a request whose client has disconnected


class Predictors(Protocol):
    """The interface to the processes that predict. `deconvnet.serving.ray_serve.Replicas` implements it with Ray Serve."""

    async def predict(self, version: "Version", data: bytes, with_overlay: bool, keep_mask: bool) -> Answer:
        """Predict an image with a version of the model. For the other arguments see `http.predict`."""

    async def different_pixels(self, model: LoadedModel, data: bytes, other: LoadedModel, mask: bytes) -> float:
        """Predict an image, and return the share of the pixels that differ from `mask`, a PNG which `other` has predicted."""


class _Request:
    """A request that a web server has received, whose body may still be arriving.

    Attributes:
        method: HTTP method.
        path: path of the address.
        ended: whether the body has been read to its end, or the client has disconnected.
        arrived: time of the arrival, from `time.perf_counter()`.
    """

    def __init__(self, scope: dict[str, Any], receive: Receive) -> None:
        """Wrap the arguments with which ASGI servers call an application."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.ended = False
        self.arrived = time.perf_counter()
        self._headers = {name.lower(): value for name, value in scope["headers"]}
        self._query = scope.get("query_string", b"").decode("latin-1")
        self._receive = receive

    async def receive(self) -> Any:
        """Wait for the next message about the request, as ASGI defines it, and return it."""
        message = await self._receive()
        self.ended = self.ended or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def disconnected(self) -> None:
        """Wait until the client has disconnected. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def header(self, name: str) -> str:
        """Return the value of a header, whose name is in lower case. "" if there is none."""
        return str(self._headers.get(name.encode(), b"").decode("latin-1"))

    def option(self, name: str) -> str:
        """Return the last value of a parameter in the query string. "" if there is none."""
        return parse_qs(self._query, keep_blank_values=True).get(name, [""])[-1]


class ServingApp:
    """The application that answers all requests of a server.

    Attributes:
        model: the version that the server announces, on its page and at /version.
        routes: which version answers a request. It is changed a moment before `model`, so that no answer of an earlier version
            follows the announcement.
        healthy: whether the processes that predict are running.
    """

    def __init__(
        self,
        predictors: Predictors,
        model: LoadedModel,
        limits: Limits,
        *,
        replicas: int = 1,
        canary: float = 0,
        shadow: bool = False,
    ) -> None:
        """Create the application.

        Args:
            predictors: the processes that predict.
            model: the version that answers from the start.
            limits: how much of the server clients may use.
            replicas: number of the processes that predict.
            canary: share of the requests that a challenger answers, once `routes` has one.
            shadow: whether the challenger also predicts the images that the champion has answered.
        """
        self.model, self.routes = model, Routes(model.version, canary)
        self.challenger: LoadedModel | None = None
        self.healthy = True
        self._predictors, self._limits, self._replicas, self._shadow = predictors, limits, replicas, shadow
        self._uploads, self._metrics = Uploads(limits), Metrics()
        self._metrics.track_drift_of([model])
        self._totals: dict[Version, AnswerTotals] = {}
        self._shadow_totals = ShadowTotals()
        self._comparisons: set[asyncio.Task[None]] = set()
        self._seconds = 1.0  # how long a prediction takes, averaged over the latest ones

    def announce(self, model: LoadedModel, challenger: LoadedModel | None) -> None:
        """Announce the versions that answer from now on.

        Args:
            model: the champion, the version in use.
            challenger: the version that is tried out, or None. If it is another one, its masks are compared anew.
        """
        if challenger != self.challenger:
            self._shadow_totals = ShadowTotals()
        self.model, self.challenger = model, challenger
        self._metrics.track_drift_of([model, challenger] if challenger else [model])

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, as an ASGI server calls it.

        POST / with an image as the body returns the image's mask. GET / returns the HTML page, /healthz the health check,
        /version the model's version and statistics of its answers, /metrics a page for Prometheus.

        Args:
            scope: description of the request.
            receive: function that gives the body.
            send: function that sends the reply. Its header X-Model holds the name and version of the model that has answered.
        """
        if scope["type"] != "http":
            return
        request, status = _Request(scope, receive), _CLIENT_DISCONNECTED
        try:
            status = await self._respond(request, send)
        except Refused as refusal:
            status = refusal.status
            headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
            reply = http.error_reply(refusal.status, refusal.message)
            with suppress(Disconnected):
                await self._send(send, Reply(reply.status, reply.media_type, reply.body, headers), self.model.version, request)
        except Disconnected:
            pass
        except Exception:
            status = 500  # the web server sends it
            logger.exception(f"{request.method} {request.path} could not be answered")
            raise
        finally:
            self._metrics.count_request(status)

    async def _respond(self, request: _Request, send: Send) -> int:
        """Answer a request by its HTTP method and its path, and return the status code. Raise Refused or Disconnected."""
        match request.method, request.path:
            case "GET" | "HEAD", "/":
                reply = http.page_reply(self.model.version.title, self.model.classes, self.model.background)
            case "GET" | "HEAD", "/healthz":
                reply = http.health_reply(self.model.version.title, self.model.classes, self.healthy)
            case "GET" | "HEAD", "/version":
                reply = http.json_reply(200, self._version())
            case "GET" | "HEAD", "/metrics":
                reply = self._metrics.page(self.routes.in_flight, self._uploads.total)
            case "POST", "/":
                return await self._predict(request, send)
            case _, path if path in PATHS:
                raise Refused(405, f"{request.method} is not supported here: {USAGE}")
            case _:
                raise Refused(404, f"there is nothing at {request.path}: {USAGE}")
        await self._send(send, reply, self.model.version, request)
        return reply.status

    async def _predict(self, request: _Request, send: Send) -> int:
        """Answer a request to predict the image in its body, and return the status code.

        Raises:
            Refused: if the request can't be used (status 400, 408, 413 or 415), the server is full (429), or the prediction fails
                (500) or takes too long (504).
            Disconnected: if the client has disconnected.
        """
        try:
            with_overlay = http.parse_overlay(request.option("overlay"))
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if request.header("content-type").startswith("multipart/"):
            raise Refused(415, f"the body is a form: {USAGE}")
        self._check_room()
        with self._uploads.open() as upload:
            length = request.header("content-length")
            data = await self._uploads.read(upload, request.receive, int(length[:18]) if length.isdecimal() else None)
            if not data:
                raise Refused(400, f"the body is empty: {USAGE}")
            self._check_room()
            with self.routes.route_request() as version:
                model, challenger = self.model, self.challenger
                in_shadow = self._shadow and challenger is not None and version == model.version
                answer = await self._answer(request, version, data, with_overlay, in_shadow)
                total = time.perf_counter() - request.arrived
                self._count(version, answer, total)
                headers = {**answer.reply.headers, "Server-Timing": http.timing_header(answer.seconds, total)}
                reply = Reply(answer.reply.status, answer.reply.media_type, answer.reply.body, headers)
                await self._send(send, reply, version, request)
        if in_shadow and challenger is not None and answer.mask is not None:
            self._start_comparison(challenger, data, model, answer.mask)
        return reply.status

    def _check_room(self) -> None:
        """Raise Refused with status 429 if too many requests wait already."""
        if (busy := self.routes.in_flight) >= self._limits.max_waiting:
            raise Refused(
                429, f"{busy} requests are waiting already: try again", retry_seconds(busy, self._seconds, self._replicas)
            )

    async def _answer(self, request: _Request, version: "Version", data: bytes, with_overlay: bool, keep_mask: bool) -> Answer:
        """Predict an image, but stop waiting if its client disconnects. For the arguments and exceptions see `_predict`."""
        work = asyncio.ensure_future(self._predictors.predict(version, data, with_overlay, keep_mask))
        gone = asyncio.ensure_future(request.disconnected())
        try:
            await asyncio.wait((work, gone), timeout=self._limits.request_timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise Disconnected
            raise Refused(504, f"there was no answer within {self._limits.request_timeout:g} s", retry_after=1)
        except (Refused, Disconnected):
            raise
        except Exception:
            logger.exception(f"{version.title} could not predict an image")
            raise Refused(500, "the prediction failed; the server's log says why") from None
        finally:
            work.cancel()
            gone.cancel()

    def _count(self, version: "Version", answer: Answer, seconds: float) -> None:
        """Count an answer of a version, if it is a mask. `seconds` is the time since the arrival of the request."""
        if answer.confidence is None:
            return
        self._seconds += 0.2 * (sum(answer.seconds.values()) - self._seconds)
        self._totals.setdefault(version, AnswerTotals()).add(answer.confidence, answer.shares)
        self._metrics.count_prediction(version, seconds, answer.confidence, answer.shares, answer.boxes)

    def _start_comparison(self, challenger: LoadedModel, data: bytes, champion: LoadedModel, mask: bytes) -> None:
        """Let the challenger predict an image in the background, unless all replicas are busy.

        Args:
            challenger: the version that predicts.
            data: the encoded image.
            champion: the version that has answered.
            mask: its mask, as a PNG.
        """
        if self.routes.in_flight + len(self._comparisons) >= self._replicas:
            self._shadow_totals.skipped += 1
            return
        task = asyncio.ensure_future(self._compare(challenger, data, champion, mask))
        self._comparisons.add(task)
        task.add_done_callback(self._comparisons.discard)

    async def _compare(self, challenger: LoadedModel, data: bytes, champion: LoadedModel, mask: bytes) -> None:
        """Log and count how the challenger's mask of an image differs. For the arguments see `_start_comparison`."""
        totals = self._shadow_totals
        try:
            different = await self._predictors.different_pixels(challenger, data, champion, mask)
        except Exception as error:
            totals.failed += 1
            logger.warning(f"shadow: {challenger.version.title} could not predict an image: {error!r}"[:500])
            return
        totals.compared += 1
        totals.different += different
        titles = f"{challenger.version.title} differs from {champion.version.title}"
        logger.info(f"shadow: {titles} in {100 * different:.1f} % of an image's pixels")

    def _version(self) -> dict[str, Any]:
        """Return the content of /version: the versions, and statistics of their answers, for JSON."""
        challenger = self._number(self.challenger.version) if self.challenger else None
        canary = {"version": challenger, "share": self.routes.share} if challenger and self.routes.share else None
        shadow = {"version": challenger, **self._shadow_totals.summary()} if challenger and self._shadow else None
        answers = {self._number(version): totals.summary() for version, totals in self._totals.items()}
        return {
            "model": self.model.version.name,
            "version": self.model.version.number,
            "since": f"{self.routes.since:%Y-%m-%dT%H:%M:%SZ}",
            "canary": canary,
            "shadow": shadow,
            "answers": dict(sorted(answers.items())),
        }

    def _number(self, version: "Version") -> str:
        """Return the number of a version, or its name and number if it is one of another model than the version in use."""
        return version.number if version.name == self.model.version.name else version.title

    async def _send(self, send: Send, reply: Reply, version: "Version", request: _Request) -> None:
        """Send a reply. If the request's body has not been read, the rest is discarded and the connection closed.

        Args:
            send: ASGI function that sends the reply.
            reply: the reply.
            version: version of the model that has answered, for the header X-Model.
            request: the request.

        Raises:
            Disconnected: if the client does not read the reply in time.
        """
        unread = request.method not in ("GET", "HEAD") and not request.ended
        headers = {
            "Content-Type": reply.media_type,
            "Content-Length": str(len(reply.body)),
            "X-Model": version.title,
            **reply.headers,
        }
        if unread:
            headers["Connection"] = "close"
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        try:
            async with asyncio.timeout(self._limits.read_timeout):
                await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
                await send({"type": "http.response.body", "body": reply.body, "more_body": unread})
                if unread:
                    await discard_rest(request.receive, self._limits.max_bytes)
                    await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            raise Disconnected from None
