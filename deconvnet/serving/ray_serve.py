"""Run a registered model behind Ray Serve.

Ray Serve starts several replicas, which are processes that each hold the model. Its HTTP server passes each request to one of
them.
"""

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
from deconvnet.serving.http import USAGE, Reply
from deconvnet.tracking import registry
from infra.errors import BadInput, UserError
from proposals.image_codec import encode_jpeg

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

APP = "deconvnet"
"""Name of the application in Ray Serve."""
WARMUP_SIZE = (375, 500)
"""Height and width in pixels of the image with which each replica warms up. Most VOC images have this size."""
_SHUTDOWN_SECONDS = 60.0  # how long a replica may take to finish its requests when it is stopped
_REQUEST_SECONDS = 600.0
_ONGOING_REQUESTS = 4  # per replica: while one image is predicted, the bodies of the others are read


@dataclass(frozen=True)
class ServedModel:
    """A model to serve, with the number, the size and the limits of its replicas.

    A replica is a process that holds the model and answers requests.

    Attributes:
        version: version of the registered model.
        tracking_uri: URI of the MLflow store from which replicas fetch the model.
        replicas: number of replicas.
        cpus: number of CPUs, and of torch threads, of each replica.
        gpus: share of a GPU that each replica takes, 0 to 1. With 0, replicas predict on CPUs.
        max_pixels: largest image that is accepted, in pixels. None for the limit that was registered with the model.
        max_bytes: largest request body that is accepted, in bytes.
        max_waiting: number of requests that may wait for a replica. Further requests are refused with status 503.
    """

    version: registry.Version
    tracking_uri: str
    replicas: int = 1
    cpus: int = 1
    gpus: float = 0
    max_pixels: int | None = None
    max_bytes: int = 32 * 2**20
    max_waiting: int = 64

    @property
    def title(self) -> str:
        """Return the name and version of the model, for messages and the HTML page."""
        return f"{self.version.name} version {self.version.number}"


class Replica:
    """A replica: a process of Ray Serve that holds the model and predicts one image after another."""

    def __init__(self, model: ServedModel) -> None:
        """Download the model, load it, and predict one synthetic image, so that later requests need not wait for compilation.

        Args:
            model: the model to serve, and the limits of this replica.

        Raises:
            UserError: if the model can't be downloaded, or is not one of this project's ensembles.
        """
        import cv2
        import torch

        from deconvnet.inference.saved_ensemble import SavedEnsemble

        torch.set_num_threads(model.cpus)
        cv2.setNumThreads(1)
        self.model = model
        self.folder = TemporaryDirectory(prefix="deconvnet-served-")  # kept, because the edge detector is read from it later
        registry.fetch(model.version, model.tracking_uri, self.folder.name)
        self.ensemble = SavedEnsemble(self.folder.name, "cuda" if model.gpus else "cpu", model.max_pixels)
        with suppress(BadInput):  # if the image is larger than max_pixels
            self.ensemble.predict(warmup_image())  # compiles code, so that no request waits for it
        self.worker = ThreadPoolExecutor(1)

    async def __call__(self, request: "Request") -> "Response":
        """Answer an HTTP request.

        POST / with an image as the body returns the image's mask, GET / returns the HTML page, and GET /healthz returns the
        health check. Other requests are answered with an error.

        Args:
            request: the request, whose body is not yet read.

        Returns:
            The response. Its header X-Model holds the name and version of the model.
        """
        from starlette.responses import Response

        reply = await self._reply(request)
        return Response(reply.body, reply.status, {"X-Model": self.model.title, **reply.headers}, reply.media_type)

    async def _reply(self, request: "Request") -> Reply:
        """Choose the reply to a request by its HTTP method and its path.

        Args:
            request: the request, whose body is not yet read.

        Returns:
            The reply. For an unknown path it is an error with status 404, for an unsupported method with status 405.
        """
        match request.method, request.url.path:
            case "GET" | "HEAD", "/":
                return http.page_reply(self.model.title, self.ensemble.classes, self.ensemble.background)
            case "GET" | "HEAD", "/healthz":
                return http.health_reply(self.model.title, self.ensemble.classes)
            case "POST", "/":
                return await self._predict(request)
            case _, "/" | "/healthz":
                return http.error_reply(405, f"{request.method} is not supported here: {USAGE}")
            case _:
                return http.error_reply(404, f"there is nothing at {request.url.path}: {USAGE}")

    async def _predict(self, request: "Request") -> Reply:
        """Predict the image in the body of a request.

        The prediction runs in the replica's only worker thread, so one image is predicted at a time. Meanwhile the event loop can
        read the bodies of other requests.

        Args:
            request: the POST request, whose body is not yet read.

        Returns:
            The reply with the mask or overlay. If the request can't be used, an error with status 400, 413 (too large) or 415 (a
            form).
        """
        received = time.perf_counter()
        try:
            with_overlay = http.parse_overlay(request.query_params.get("overlay", ""))
        except ValueError as error:
            return http.error_reply(400, str(error))
        if request.headers.get("content-type", "").startswith("multipart/"):
            return http.error_reply(415, f"the body is a form: {USAGE}")
        if (data := await self._body(request)) is None:
            return http.error_reply(413, f"the body is larger than {self.model.max_bytes / 2**20:g} MiB: send a smaller image")
        if not data:
            return http.error_reply(400, f"the body is empty: {USAGE}")
        work = partial(http.prediction_reply, self.ensemble, data, received, with_overlay=with_overlay)
        return await asyncio.get_running_loop().run_in_executor(self.worker, work)

    async def _body(self, request: "Request") -> bytes | None:
        """Read the body of a request. Reading stops once the body is larger than the replica's limit `max_bytes`.

        Args:
            request: the request, whose body is not yet read.

        Returns:
            The body, or None if it is larger than the limit. If the header Content-Length already exceeds the limit, nothing is
            read.
        """
        with suppress(ValueError):
            if int(request.headers.get("content-length", "0")) > self.model.max_bytes:
                return None
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self.model.max_bytes:
                return None
        return bytes(data)


def check_installed() -> None:
    """Raise UserError if Ray Serve is not installed. The message says how to install it."""
    try:
        importlib.import_module("ray.serve")
    except ImportError:
        raise UserError(
            "Ray Serve is not installed; to install it run in the project's folder: pip install -c constraints.txt -e '.[serve]'"
        ) from None


@contextmanager
def serving(
    model: ServedModel, host: str, port: int, nodes: Mapping[str, str] | None = None, *, shared_ray: bool = True
) -> Iterator[None]:
    """Serve a model as long as a `with` block runs, on the Ray cluster to which this process is connected.

    The block starts when the replicas (processes that hold the model) are ready. At its end, they first finish the requests that
    they are answering.

    Args:
        model: the model to serve, with the number and size of its replicas.
        host: address to listen at.
        port: port to listen at.
        nodes: Ray labels that a node must have to run replicas, values by key. None for all nodes.
        shared_ray: True if the Ray cluster continues to run after this process. Ray Serve is then shut down at the end of the
            block. If False, only the model is removed from Ray Serve.

    Raises:
        UserError: if Ray Serve already runs on this cluster, or the replicas don't start.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise UserError("this Ray serves something already, at a port of its own: stop that (serve shutdown), or use another Ray")
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=quiet)
        selector = {"label_selector": dict(nodes)} if nodes else {}
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=model.replicas,
            ray_actor_options={"num_cpus": model.cpus, "num_gpus": model.gpus, **selector},
            max_ongoing_requests=_ONGOING_REQUESTS,
            max_queued_requests=model.max_waiting,
            max_constructor_retry_count=1,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=_SHUTDOWN_SECONDS,
            logging_config=quiet,
        )
        try:
            serve.run(deployment.bind(model), name=APP, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise UserError(f"{model.title} can't be served: {failure_reason(_replica_messages() or str(error))}") from error
        yield
    finally:
        serve.delete(APP)
        if shared_ray:
            serve.shutdown()


def is_serving() -> bool:
    """Return whether Ray Serve still runs the served model. False means that it has failed, was deleted or was never started."""
    from ray import serve

    app = serve.status().applications.get(APP)
    return app is not None and app.status not in ("DEPLOY_FAILED", "NOT_STARTED", "DELETING")


def warmup_image() -> bytes:
    """Return a synthetic image of 500 x 375 pixels (width x height), encoded as JPEG."""
    from deconvnet.datasets.synthetic import generate

    return encode_jpeg(generate(0, 0, *WARMUP_SIZE)[0])


def measure_latency(url: str) -> float | None:
    """Measure how long a server takes to predict one synthetic image of 500 x 375 pixels.

    Args:
        url: address of the server.

    Returns:
        Seconds from sending the request to receiving the whole reply. None if the server refuses the image, for example because
        it accepts only smaller ones, or is busy.

    Raises:
        UserError: if the server fails, so that it could predict no image.
        OSError: if the server does not answer.
    """
    request = urllib.request.Request(url, warmup_image(), {"Content-Type": "image/jpeg"})
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as reply:
            reply.read()
    except urllib.error.HTTPError as error:
        if error.code < 500 or error.code == 503:
            return None
        text = error.read().decode(errors="replace").strip()
        raise UserError(f"the model can't predict a test image (HTTP status {error.code}): {text[:500]}") from None
    return time.perf_counter() - started


def _replica_messages() -> str:
    """Read from Ray Serve its status messages about the replicas (the processes that hold the model).

    They say why a replica failed, whereas an exception of Ray Serve may only say that it failed.

    Returns:
        The messages, one a line. "" if Ray Serve does not know the served model.
    """
    from ray import serve

    app = serve.status().applications.get(APP)
    return "\n".join(deployment.message for deployment in app.deployments.values()) if app else ""


def failure_reason(report: str) -> str:
    """Find the reason why a replica (a process that holds the model) failed, in the text that Ray Serve reports.

    Args:
        report: the text, with or without a traceback. It must not be empty.

    Returns:
        The last line that names an exception, or the last line if none does. The prefix `infra.errors.UserError: ` is removed.
    """
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith(("File ", "ray::", "raise "))]
    return (errors or lines)[-1].removeprefix("infra.errors.UserError: ")
