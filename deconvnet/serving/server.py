"""Serves a registered model until it is stopped, and checks first that it can be."""

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
"""How often it is checked whether Ray Serve is still running."""


def serve(model: ServedModel, host: str, port: int, cluster: ClusterSettings) -> None:
    """Start Ray Serve and wait until it is stopped.

    Args:
        model: the model and its replicas.
        host: address to listen at.
        port: port to listen at.
        cluster: the Ray to run in.

    Raises:
        KeyboardInterrupt: when it is stopped by Ctrl-C.
        UserError: if there is no room for the replicas, or Ray Serve gives up.
    """
    nodes = cluster.selector("training_nodes" if model.gpus else "data_nodes")
    with connected(cluster):
        check_room(model, nodes)
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
    """Check that this process can listen at host:port: Ray Serve would silently share a port with another server.

    Raises:
        UserError: if the host is not of this machine, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host {host} is not an address of this machine: {error.strerror}") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that just stopped don't count
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise UserError(f"can't listen at {host}:{port}: {error.strerror}: name another --port or --host") from None


def check_room(model: ServedModel, nodes: Mapping[str, str]) -> None:
    """Check that Ray has room for all replicas, as they would otherwise wait forever.

    Args:
        model: the model and its replicas.
        nodes: Ray label selector of the nodes that count; {} for all.

    Raises:
        UserError: if there is no room, and the cluster can't grow.
    """
    fits = actor_slots(nodes, model.cpus, model.gpus)
    if fits < model.replicas and not can_autoscale():
        each = f"{model.cpus} CPUs" + (f" and {model.gpus:g} of a GPU" if model.gpus else "")
        raise UserError(
            f"replicas {model.replicas} is more than this Ray has room for, {fits} of {each}: lower it, or give each less"
        )


def url_host(host: str) -> str:
    """The host to put into a URL that this machine can open: 127.0.0.1 for 0.0.0.0; IPv6 addresses in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
