"""Run work: the stages of a pipeline, the parallel jobs of a stage, and Ray, which distributes jobs over machines."""

from collections.abc import Callable
from typing import Literal

from infra.runtime.executor import Executor
from infra.settings import ClusterSettings


def open_executor(
    name: Literal["ray", "local"], cluster: ClusterSettings, should_stop: Callable[[], bool] = lambda: False
) -> Executor:
    """Create an executor, an object that runs the parallel jobs of a pipeline. A `with` statement starts and stops it.

    Args:
        name: "ray" to use the nodes of a Ray cluster, "local" to use processes on this machine without Ray.
        cluster: settings of the Ray cluster. The local executor uses only `num_cpus`, as its number of processes.
        should_stop: function that is called after each unit of work. If it returns True, the executor raises Interrupted.

    Returns:
        A `RayExecutor` or a `LocalExecutor`.
    """
    if name == "local":
        from infra.runtime.local_executor import LocalExecutor

        return LocalExecutor(cluster.num_cpus, should_stop)
    from infra.runtime.ray_executor import RayExecutor

    return RayExecutor(cluster, should_stop)
