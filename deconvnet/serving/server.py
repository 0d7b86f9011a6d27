"""Serve a registered model until the user stops it, and check beforehand that this is possible."""

import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from deconvnet.serving.app import ServingApp
from deconvnet.serving.follow import Follower, challenger_uri, find_targets
from deconvnet.serving.limits import Limits
from deconvnet.serving.listener import listen_at, run_http_server
from deconvnet.serving.ray_serve import run_replicas, running_replicas
from deconvnet.serving.replica import WARMUP_SIZE, ServedModel, warmup_image
from infra.errors import UserError
from infra.runtime.cluster import actor_slots, can_autoscale, connected
from infra.settings import ClusterSettings

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 5.0
"""Seconds between two checks whether Ray Serve is still running."""
_REQUEST_SECONDS = 600.0
_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy in http_proxy does not reach this machine


@dataclass(frozen=True)
class FollowOptions:
    """How a server follows the aliases of a registered model, and what it does with a challenger.

    Attributes:
        model: URI of the registered model that answers. If it has an alias, the server follows the alias.
        challenger: URI of the registered model that is tried out, or None for the alias `challenger` of the same model.
        canary: share of the requests that the challenger answers, 0 to 1.
        shadow: whether the challenger predicts the champion's images, too, so that the masks can be compared.
        poll_seconds: seconds between two questions to the registry.
    """

    model: str
    challenger: str | None = None
    canary: float = 0.0
    shadow: bool = False
    poll_seconds: float = 10.0

    @property
    def challenger_uri(self) -> str | None:
        """Return the URI of the challenger. None if none is to be tried out."""
        return challenger_uri(self.model, self.challenger) if self.canary or self.shadow else None


def serve(model: ServedModel, follow: FollowOptions, limits: Limits, host: str, port: int, cluster: ClusterSettings) -> None:
    """Serve a model with Ray Serve, follow its alias, and block until the user stops it.

    The function logs the address of the server and how long the prediction of one image takes.

    Args:
        model: the model to serve, with the number and size of its replicas (processes that predict).
        follow: which registered model to follow.
        limits: how much of the server clients may use.
        host: address to listen at.
        port: port to listen at.
        cluster: settings that name the Ray cluster to join. If they name none, Ray is started on this machine.

    Raises:
        KeyboardInterrupt: if the user stops the server with Ctrl-C. It is raised after the server has shut down.
        UserError: if the cluster can't be used, has no room for the replicas, or Ray Serve stops running them.
    """
    nodes = cluster.selector("training_nodes" if model.gpus else "data_nodes")
    with connected(cluster):
        check_room(model, cluster, nodes)
        logger.info(f"starting {model.replicas} × {model.title} …")
        joined = bool(cluster.address or os.environ.get("RAY_ADDRESS"))
        with run_replicas(model, nodes, shared_ray=joined) as replicas:
            app = ServingApp(
                replicas,
                replicas.loaded[model.version],
                limits,
                replicas=model.replicas,
                canary=follow.canary,
                shadow=follow.shadow,
            )
            find = partial(find_targets, follow.model, follow.challenger_uri, model.tracking_uri)
            follower = Follower(app, replicas, find, follow.poll_seconds)
            with run_http_server(app, host, port), _in_thread(follower):
                _log_address(model, host, port)
                try:
                    while (running := running_replicas()) is not None:
                        app.healthy = running > 0
                        time.sleep(_CHECK_SECONDS)
                except KeyboardInterrupt:
                    logger.info("\nstopping")
                    raise
            raise UserError(
                f"Ray Serve stopped serving {app.model.version.title}: see its logs in Ray's session folder "
                "(/tmp/ray/session_latest/logs)"
            )


@contextmanager
def _in_thread(follower: Follower) -> Iterator[None]:
    """Follow the aliases in a thread as long as a `with` block runs. The thread ends after the step that it is taking."""
    stop = threading.Event()
    threading.Thread(target=follower.run, args=(stop,), name="follower", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _log_address(model: ServedModel, host: str, port: int) -> None:
    """Log how long a prediction takes, and how to call the server.

    Args:
        model: the model that is served.
        host: address at which the server listens.
        port: port at which it listens.

    Raises:
        UserError: if the server can't predict a test image.
    """
    url = f"http://{url_host(host)}:{port}"
    height, width = WARMUP_SIZE
    if seconds := measure_latency(url):
        logger.info(f"one image of {width}×{height} px takes {seconds:.2f} s ({model.cpus} CPU threads)\n")
    logger.info(f"serving at {url}: open it, or  curl --data-binary @photo.jpg {url} -o mask.png")
    logger.info("Ctrl-C stops it")


def check_port_free(host: str, port: int) -> None:
    """Check that this process can listen at an address and port, before anything is started. Raise UserError if it can't."""
    listen_at(host, port).close()


def check_room(model: ServedModel, cluster: ClusterSettings, nodes: Mapping[str, str]) -> None:
    """Check that the Ray cluster has room for all replicas, which are the processes that hold the model.

    Without this check, a replica that does not fit would wait forever.

    Args:
        model: the model to serve, with the number and size of its replicas.
        cluster: settings that say whether the cluster may add nodes.
        nodes: Ray labels that a node must have to run replicas, values by key. {} for all nodes.

    Raises:
        UserError: if the replicas don't fit on the present nodes and no autoscaler could add nodes.
    """
    fits = actor_slots(nodes, model.cpus, model.gpus)
    if fits < model.replicas and not can_autoscale(cluster):
        each = f"{model.cpus} CPUs" + (f" and {model.gpus:g} of a GPU" if model.gpus else "")
        raise UserError(
            f"replicas {model.replicas} is too many: this Ray cluster has room for {fits} with {each} each. Lower this number, "
            "or the size of each replica"
        )


def url_host(host: str) -> str:
    """Return the host part of a URL by which this machine can reach the server.

    Args:
        host: the address at which the server listens.

    Returns:
        The address. The wildcard addresses 0.0.0.0 and :: become the loopback addresses 127.0.0.1 and ::1. IPv6 addresses are in
        square brackets.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


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
        with _WITHOUT_PROXY.open(request, timeout=_REQUEST_SECONDS) as reply:
            reply.read()
    except urllib.error.HTTPError as error:
        if error.code < 500 or error.code == 503:
            return None
        text = error.read().decode(errors="replace").strip()
        raise UserError(f"the model can't predict a test image (HTTP status {error.code}): {text[:500]}") from None
    return time.perf_counter() - started
