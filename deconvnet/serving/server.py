"""Serve a registered model until the user stops it, and check beforehand that this is possible."""

import logging
import os
import socket
import time
from collections.abc import Mapping

from deconvnet.serving.ray_serve import WARMUP_SIZE, ServedModel, is_serving, measure_latency, serving
from infra.errors import UserError
from infra.runtime.cluster import actor_slots, can_autoscale, connected
from infra.settings import ClusterSettings

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 5.0
"""Seconds between two checks whether Ray Serve is still running."""


def serve(model: ServedModel, host: str, port: int, cluster: ClusterSettings) -> None:
    """Serve a model with Ray Serve, and block until the user stops it.

    The function logs the address of the server and how long the prediction of one image takes.

    Args:
        model: the model to serve, with the number and size of its replicas (processes that hold the model).
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
        with serving(model, host, port, nodes, shared_ray=joined):
            url = f"http://{url_host(host)}:{port}"
            height, width = WARMUP_SIZE
            if seconds := measure_latency(url):
                logger.info(f"one image of {width}×{height} px takes {seconds:.2f} s ({model.cpus} CPU threads)\n")
            logger.info(f"serving at {url}: open it, or  curl --data-binary @photo.jpg {url} -o mask.png")
            logger.info("Ctrl-C stops it")
            try:
                while is_serving():
                    time.sleep(_CHECK_SECONDS)
            except KeyboardInterrupt:
                logger.info("\nstopping")
                raise
            raise UserError(
                f"Ray Serve gave {model.title} up: its logs are in Ray's session folder (/tmp/ray/session_latest/logs)"
            )


def check_port_free(host: str, port: int) -> None:
    """Check that this process can listen at an address and port.

    Ray Serve itself would not complain: it would share the port with another server.

    Args:
        host: host name or IP address of this machine.
        port: port to listen at.

    Raises:
        UserError: if the address is not one of this machine, or the port is already in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host {host} is not an address of this machine: {error.strerror}") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections of a server that just stopped
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise UserError(f"can't listen at {host}:{port}: {error.strerror}: name another --port or --host") from None


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
            f"replicas {model.replicas} is more than this Ray has room for, {fits} of {each}: lower it, or give each less"
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
