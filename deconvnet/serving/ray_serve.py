"""A registered model behind Ray Serve: replicas that each hold it, and an HTTP server before them."""

import asyncio
import importlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deconvnet.serving import http
from deconvnet.serving.http import HOW_TO_SEND, Reply
from deconvnet.tracking import registry
from infra.errors import BadInput, UserError
from proposals.image_codec import encode_jpeg

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

APP = "deconvnet"
WARM_SIZE = (375, 500)
"""Height and width of the photograph that replicas are warmed with: most of VOC's have this size."""
_LAST_WORDS_SECONDS = 60.0  # that a replica is granted to end what it is at
_PATIENCE_SECONDS = 600.0
_AT_ONCE = 4  # requests that a replica takes in: one is labelled, the next ones' bodies are read meanwhile


@dataclass(frozen=True)
class Served:
    """What replicas hold, and what they take.

    store: MLflow's address, where they fetch the model. cpus: of each, and its torch threads. max_pixels: None: as the model was
    registered. max_waiting: requests that wait for a replica; more are refused (503).
    """

    version: registry.Version
    store: str
    replicas: int = 1
    cpus: int = 1
    gpus: float = 0
    max_pixels: int | None = None
    max_bytes: int = 32 * 2**20
    max_waiting: int = 64

    @property
    def title(self) -> str:
        return f"{self.version.name} version {self.version.number}"


class Replica:
    """A process that holds the model and labels one photograph after another."""

    def __init__(self, served: Served) -> None:
        """Raises UserError where the model can't be fetched."""
        import cv2
        import torch

        from deconvnet.inference.saved_ensemble import SavedEnsemble

        torch.set_num_threads(served.cpus)
        cv2.setNumThreads(1)
        self.served = served
        self.folder = TemporaryDirectory(prefix="deconvnet-served-")  # the forest of edges is read from it as it is needed
        registry.fetch(served.version, served.store, self.folder.name)
        self.ensemble = SavedEnsemble(self.folder.name, "cuda" if served.gpus else "cpu", served.max_pixels)
        with suppress(BadInput):  # max_pixels may be less
            self.ensemble.predict(warm_photograph())  # what is compiled or set up once is no visitor's business
        self.worker = ThreadPoolExecutor(1)

    async def __call__(self, request: "Request") -> "Response":
        """POST / with a photograph as the body; GET / and /healthz."""
        from starlette.responses import Response

        reply = await self._reply(request)
        return Response(reply.body, reply.status, {"X-Model": self.served.title, **reply.headers}, reply.media_type)

    async def _reply(self, request: "Request") -> Reply:
        match request.method, request.url.path:
            case "GET" | "HEAD", "/":
                return http.page(self.served.title, self.ensemble.classes)
            case "GET" | "HEAD", "/healthz":
                return http.health(self.served.title, self.ensemble.classes)
            case "POST", "/":
                return await self._label(request)
            case _, "/" | "/healthz":
                return http.refusal(405, f"{request.method} is not understood here: {HOW_TO_SEND}")
            case _:
                return http.refusal(404, f"there is nothing at {request.url.path}: {HOW_TO_SEND}")

    async def _label(self, request: "Request") -> Reply:
        arrived = time.perf_counter()
        try:
            draw = http.wants_overlay(request.query_params.get("overlay", ""))
        except ValueError as error:
            return http.refusal(400, str(error))
        if request.headers.get("content-type", "").startswith("multipart/"):
            return http.refusal(415, f"the body is a form: {HOW_TO_SEND}")
        if (data := await self._body(request)) is None:
            return http.refusal(413, f"the body is larger than {self.served.max_bytes / 2**20:g} MiB: send a smaller photograph")
        if not data:
            return http.refusal(400, f"the body is empty: {HOW_TO_SEND}")
        work = partial(http.answer, self.ensemble, data, arrived, draw=draw)
        return await asyncio.get_running_loop().run_in_executor(self.worker, work)

    async def _body(self, request: "Request") -> bytes | None:
        """The body; None where it is too large. One that is announced as such is not read."""
        with suppress(ValueError):
            if int(request.headers.get("content-length", "0")) > self.served.max_bytes:
                return None
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self.served.max_bytes:
                return None
        return bytes(data)


def check_installed() -> None:
    """Raises UserError where Ray Serve is not installed."""
    try:
        importlib.import_module("ray.serve")
    except ImportError:
        raise UserError(
            "Ray Serve is not installed: pip install -c constraints.txt -e '.[serve]' in the project's folder brings it"
        ) from None


@contextmanager
def serving_at(
    served: Served, host: str, port: int, nodes: Mapping[str, str] | None = None, *, lasting: bool = True
) -> Iterator[None]:
    """Replicas that answer at host:port, for the time of a block, in the Ray that this process is connected to.

    At the block's end requests that are being answered are waited for. nodes: Ray label selector of the replicas. lasting: this Ray
    outlives the process, so Ray Serve is taken down too. Raises UserError where that Ray serves something already, or the replicas
    don't start.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise UserError("this Ray serves something already, at a port of its own: stop that (serve shutdown), or use another Ray")
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=quiet)
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=served.replicas,
            ray_actor_options={
                "num_cpus": served.cpus,
                "num_gpus": served.gpus,
                **({"label_selector": dict(nodes)} if nodes else {}),
            },
            max_ongoing_requests=_AT_ONCE,
            max_queued_requests=served.max_waiting,
            max_constructor_retry_count=1,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=_LAST_WORDS_SECONDS,
            logging_config=quiet,
        )
        try:
            serve.run(deployment.bind(served), name=APP, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise UserError(f"{served.title} can't be served: {_reason(_told() or str(error))}") from error
        yield
    finally:
        serve.delete(APP)
        if lasting:
            serve.shutdown()


def still_served() -> bool:
    """False where Ray Serve has given the replicas up."""
    from ray import serve

    app = serve.status().applications.get(APP)
    return app is not None and app.status not in ("DEPLOY_FAILED", "NOT_STARTED", "DELETING")


def warm_photograph() -> bytes:
    """A generated photograph's JPEG."""
    from deconvnet.datasets.synthetic import generate

    return encode_jpeg(generate(0, 0, *WARM_SIZE)[0])


def seconds_to_label(url: str) -> float | None:
    """How long one photograph takes at a server, from the request to the whole answer; None where it is refused (max_pixels).

    Raises OSError where the server does not answer.
    """
    request = urllib.request.Request(url, warm_photograph(), {"Content-Type": "image/jpeg"})
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as reply:
            reply.read()
    except urllib.error.HTTPError:
        return None
    return time.perf_counter() - started


def _told() -> str:
    """What Ray Serve knows of the replicas; its exception says at times no more than that they failed."""
    from ray import serve

    app = serve.status().applications.get(APP)
    return "\n".join(each.message for each in app.deployments.values()) if app else ""


def _reason(report: str) -> str:
    """The line of Ray Serve's report that says what a replica failed by: the last of a traceback."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line and not line.startswith(("File ", "ray::", "raise "))]
    return (told or lines)[-1].removeprefix("infra.errors.UserError: ")
