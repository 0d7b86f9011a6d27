"""Running of work: pipeline stages that are skipped when complete, executors for their jobs, and the connection to Ray."""

from collections.abc import Callable
from typing import Literal

from infra.runtime.executor import Executor
from infra.settings import ClusterSettings


def open_executor(
    name: Literal["ray", "local"], cluster: ClusterSettings, should_stop: Callable[[], bool] = lambda: False
) -> Executor:
    """Make the executor that the setting `executor` names. It is not started yet. Ray is imported only if needed.

    Args:
        name: "ray" to use the nodes of a Ray cluster, "local" to use processes on this machine.
        cluster: settings of the Ray cluster. The local executor only uses `num_cpus`, as its number of processes.
        should_stop: called after each unit of work. If it returns True, the executor raises Interrupted.
    """
    if name == "local":
        from infra.runtime.local_executor import LocalExecutor

        return LocalExecutor(cluster.num_cpus, should_stop)
    from infra.runtime.ray_executor import RayExecutor

    return RayExecutor(cluster, should_stop)
