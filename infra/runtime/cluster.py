"""Join a Ray cluster or start Ray on this machine, and find out about the nodes of the cluster."""

import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from infra.errors import UserError
from infra.runtime.ray_watch import watched
from infra.settings import ClusterSettings

logger = logging.getLogger(__name__)

HEAD_SECONDS = 15.0
"""Seconds in which the head of a cluster must answer."""


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[None]:
    """Connect to Ray for the duration of a `with` statement, and disconnect at its end.

    If the settings or the environment variable RAY_ADDRESS give the address of a cluster, that cluster is joined. Ray sets
    RAY_ADDRESS for submitted jobs. Without an address, Ray is started on this machine, and stopped at the end. Ray's own log
    messages and progress bars are switched off.

    If the connection to Ray is lost inside the block, the process ends with a message and exit code 75 (see `ray_watch`).

    Args:
        settings: address of the cluster, and resources of a Ray that is started on this machine.

    Raises:
        UserError: if the cluster can't be joined, or Ray can't be started.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default of later Ray versions; avoids a warning
    # Ray's C++ code would print errors on the terminal that are also raised as Python exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    address = settings.address or os.environ.get("RAY_ADDRESS")
    resources: dict[str, Any] = {}
    if not address:
        memory = settings.object_store_mb * 2**20
        resources = {"num_cpus": settings.num_cpus, "object_store_memory": memory, "include_dashboard": False}
    on_main = threading.current_thread() is threading.main_thread()
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _check_head(address)
        with _silent_stderr():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **resources)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"join the Ray cluster at {address} (cluster.address or RAY_ADDRESS)" if address else "start Ray on this machine"
        raise UserError(f"can't {what}: {str(error).splitlines()[0]}") from error
    except SystemExit:
        raise KeyboardInterrupt from None  # Ray's own SIGTERM handler raises SystemExit, with another exit code
    finally:
        if on_main:
            signal.signal(signal.SIGTERM, terminated)
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False  # infra.runtime.progress shows the progress in one line; Ray needs eight
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with watched(*_watchable(address), _check_head, HEAD_SECONDS):
            yield
    finally:
        ray.shutdown()


def _watchable(address: str | None) -> tuple[str | None, str | None]:
    """Find out what to watch of the Ray that this process has joined or started.

    Args:
        address: address under which a cluster was joined; None if Ray was started on this machine.

    Returns:
        The path of the Unix socket of the object store on this machine, and the address of the cluster's head. Both are None
        for a cluster joined by ray://, which is on other machines. The address is None for a Ray that was started on this
        machine.
    """
    import ray

    if address and address.startswith("ray://"):
        return None, None
    context = ray.get_runtime_context()
    own: dict[str, Any] = next((node for node in ray.nodes() if node["NodeID"] == context.get_node_id()), {})
    return own.get("ObjectStoreSocketName"), context.gcs_address if address else None


def _check_head(address: str) -> None:
    """Check that a Ray head answers. Ray itself would try for two minutes, and the process would ignore signals meanwhile.

    Addresses in other forms than HOST:PORT, and clusters with TLS, are not checked here.

    Args:
        address: address of the cluster, such as HOST:PORT. "auto" stands for the Ray that runs on this machine.

    Raises:
        ConnectionError: if nothing that speaks gRPC answers within 15 seconds (HEAD_SECONDS).
    """
    if address == "auto":
        from infra.runtime.ray_compat import running_head

        address = running_head() or address
    match = re.fullmatch(r"(ray://)?(?P<host>[^/]+):(?P<port>\d+)", address)
    if match is None or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    import grpc
    import ray.util

    host = match["host"]
    if host in ("localhost", "127.0.0.1"):  # a head listens at its machine's address
        host = ray.util.get_node_ip_address()
    with grpc.insecure_channel(f"{host}:{match['port']}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(HEAD_SECONDS)
        except grpc.FutureTimeoutError:
            raise ConnectionError(f"no Ray head answers there within {HEAD_SECONDS:g} s") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard everything that this process writes to stderr, even from C++, for the duration of a `with` statement.

    It hides the messages of Ray's C++ code at the start. Python exceptions are raised as usual.
    """
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def alive_nodes(labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the alive nodes of the Ray cluster that have certain labels.

    Args:
        labels: label values by label key, all of which a node must have; None or {} for all alive nodes.

    Returns:
        The descriptions of the nodes by `ray.nodes()`: dictionaries with "NodeID", "Resources", "Labels" and others.
    """
    import ray

    wanted = (labels or {}).items()
    return [node for node in ray.nodes() if node["Alive"] and wanted <= (node["Labels"] or {}).items()]


def actor_slots(nodes: Mapping[str, str], cpus: float, gpus: float = 0) -> int:
    """Return how many actors the alive nodes have room for at the same time.

    All resources of a node are included, whether they are free or in use.

    Args:
        nodes: Ray labels that a node must have to run actors, as label values by label key; {} for any node.
        cpus: number of CPUs that each actor takes.
        gpus: number of GPUs that each actor takes.
    """
    resources = [node["Resources"] for node in alive_nodes(nodes)]
    return sum(int(min(has.get("CPU", 0) // cpus, has.get("GPU", 0) // gpus if gpus else math.inf)) for has in resources)


def check_nodes(settings: ClusterSettings, kind: Literal["data_nodes", "training_nodes"]) -> None:
    """Check that the cluster has nodes with the labels in a setting, or may get them later. In the latter case, log a message.

    Args:
        settings: settings of the cluster.
        kind: name of the setting that holds the labels. If that setting is empty, nothing is checked.

    Raises:
        UserError: if there are no such nodes and none can be added, so that work for them would wait for ever.
    """
    nodes = settings.selector(kind)
    if not nodes or alive_nodes(nodes):
        return
    labels = ",".join(f"{key}={value}" for key, value in nodes.items())
    if not can_autoscale(settings):
        raise UserError(
            f"no alive node of this Ray is labelled {labels} (cluster.{kind}): start one with `ray start --labels {labels}`, "
            "leave the setting empty, or set cluster.autoscaling to true if the cluster adds such nodes"
        )
    logger.info(f"  no alive node is labelled {labels} (cluster.{kind}): the run waits until the cluster adds one")


def can_autoscale(settings: ClusterSettings) -> bool:
    """Return whether the cluster may add nodes by itself.

    The setting `cluster.autoscaling` decides if it is given. Otherwise the answer is True in two cases: this machine is the head
    of a cluster that was started by `ray up`, or the head of a KubeRay cluster with an autoscaler. In the second case, KubeRay
    starts Ray with `--no-monitor`.

    Args:
        settings: settings of the cluster.
    """
    if settings.autoscaling is not None:
        return settings.autoscaling
    kuberay = "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
    return kuberay or Path("~/ray_bootstrap_config.yaml").expanduser().exists()
