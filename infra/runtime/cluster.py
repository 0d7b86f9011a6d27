"""Join a Ray cluster or start Ray on this machine, and find out about the nodes of the cluster."""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.settings import ClusterSettings


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[None]:
    """Connect to Ray for the duration of a `with` statement, and disconnect at its end.

    A cluster is joined if the settings or the environment variable RAY_ADDRESS, which Ray sets for submitted jobs, name one.
    Otherwise Ray is started on this machine, and stopped at the end.

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
        with _silent_stderr():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **resources)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise UserError(f"can't {what}: {str(error).splitlines()[0]}") from error
    if on_main:
        signal.signal(signal.SIGTERM, terminated)  # restores the handler, because Ray's own exits without a message
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False  # infra.runtime.progress shows the progress in one line; Ray needs eight
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


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


def live_nodes(labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the living nodes of the Ray cluster that have certain labels.

    Args:
        labels: label values by label key, all of which a node must have; None or {} for all living nodes.

    Returns:
        The descriptions of the nodes by `ray.nodes()`: dictionaries with "NodeID", "Resources", "Labels" and others.
    """
    import ray

    wanted = (labels or {}).items()
    return [node for node in ray.nodes() if node["Alive"] and wanted <= (node["Labels"] or {}).items()]


def actor_slots(nodes: Mapping[str, str], cpus: float, gpus: float = 0) -> int:
    """Return how many actors the living nodes have room for at the same time.

    All resources of a node count, whether they are free or in use.

    Args:
        nodes: Ray labels that a node must have to run actors, label values by key; {} for any node.
        cpus: number of CPUs that each actor takes.
        gpus: number of GPUs that each actor takes.
    """
    there = [node["Resources"] for node in live_nodes(nodes)]
    return sum(int(min(has.get("CPU", 0) // cpus, has.get("GPU", 0) // gpus if gpus else math.inf)) for has in there)


def check_nodes(nodes: Mapping[str, str], setting: str) -> None:
    """Check that the cluster has nodes with certain labels, or may get them later.

    Args:
        nodes: the labels, values by key; {} to check nothing.
        setting: name of the setting that holds the labels, for the error message.

    Raises:
        UserError: if there are no such nodes and none can be added, so that work for them would wait for ever.
    """
    if nodes and not live_nodes(nodes) and not can_autoscale():
        labels = ",".join(f"{key}={value}" for key, value in nodes.items())
        raise UserError(
            f"no living node of this Ray is labelled {labels} ({setting}): start one with `ray start --labels {labels}`, "
            "or leave the setting empty"
        )


def can_autoscale() -> bool:
    """Return whether the cluster may be able to add nodes by itself.

    This is assumed if it runs on Kubernetes or was started by `ray up`.
    """
    return "KUBERNETES_SERVICE_HOST" in os.environ or Path("~/ray_bootstrap_config.yaml").expanduser().exists()
