"""How work runs: stages that are skipped when complete, executors for their jobs, and what is needed to use Ray."""

from collections.abc import Callable
from typing import Literal

from infra.runtime.executor import Executor
from infra.settings import ClusterSettings


def open_executor(
    name: Literal["ray", "local"], cluster: ClusterSettings, should_stop: Callable[[], bool] = lambda: False
) -> Executor:
    """Make the executor that the setting `executor` names. Ray is imported only for "ray".

    Args:
        name: "ray" for the nodes of a Ray cluster, "local" for this process and a pool of processes.
        cluster: where Ray runs; of the local executor, `cluster.num_cpus` is the number of processes.
        should_stop: checked after each unit; once True, Interrupted is raised.
    """
    if name == "local":
        from infra.runtime.local_executor import LocalExecutor

        return LocalExecutor(cluster.num_cpus, should_stop)
    from infra.runtime.ray_executor import RayExecutor

    return RayExecutor(cluster, should_stop)
