"""Training batches that Ray Data makes outside the training process. `dataloader.ThreadedLoader` makes the same batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deconvnet.training.data.dataloader import BatchLoader
from deconvnet.training.interfaces import Batch

_MiB = 2**20


class RayDataLoader(BatchLoader):
    """A source of training batches that are made by Ray Data, for a worker of Ray Train.

    One Ray task makes all batches of the rank, one after the other, with `threads` threads (an attribute of this class). It
    waits when the batches that were not used yet take too much memory.

    The Ray Data job is started by the worker, because only the worker knows the first step: it has loaded the checkpoint. The
    task runs on the worker's node. It reserves no CPUs of its own but uses those that the worker reserves
    (`compute.cpus_per_worker`). If its process dies, it is not started again, for it would begin with the first step. The
    worker fails instead, and Ray Train restarts it from the last checkpoint.
    """

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's shares of consecutive global batches, as described in `BatchLoader.batches`."""
        import ray
        from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy

        from infra.runtime.ray_compat import PollThrottle, task_retries

        plan, rank, threads = self.plan, self.rank, self.threads

        def make_batches(_: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            """Make this rank's batches. This function runs in a Ray task.

            Args:
                _: the only block of the Ray data set, which is not used.

            Yields:
                Batches of examples: uint8 arrays of shape (n, 3, S, S) as "image" and (n, S, S) as "mask".
            """
            for images, masks in plan.batches(plan.reader(rank), threads, first_step, stop_step):
                yield {"image": images, "mask": masks}

        share = len(plan.share(rank))
        batch_bytes = 4 * share * plan.examples.size**2
        # `from_items` makes the block in this process. `ray.data.range` would start a task that reserves a CPU, and none may be
        # left.
        dataset = ray.data.from_items([first_step])
        dataset.context.enable_progress_bars = False
        dataset.context.custom_execution_callback_classes = [PollThrottle]
        dataset.context.target_max_block_size = max(_MiB, batch_bytes)
        dataset.context.execution_options = ExecutionOptions(
            preserve_order=True,
            # No CPUs or GPUs, so that no node is requested of an autoscaler.
            resource_limits=ExecutionResources(cpu=0, gpu=0, object_store_memory=max(32 * _MiB, 8 * batch_bytes)),
        )
        with task_retries(0) as retries:
            made = dataset.map_batches(
                make_batches,
                batch_size=None,  # the whole block
                num_cpus=0,
                compute=TaskPoolStrategy(size=1),
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
                **retries,
            )
        for batch in made.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2):
            yield batch["image"], batch["mask"]


def ray_data_config(threads: int) -> Any:
    """Return a `ray.train.DataConfig` that gives each worker a `RayDataLoader`.

    With this configuration, the argument `datasets` of the Ray trainer must contain instances of `BatchPlan`. Whenever Ray
    starts workers, it asks the configuration for their loaders and passes the number of workers.

    Args:
        threads: number of threads in each Ray Data task.
    """
    from ray.train import DataConfig

    class LoaderPerRank(DataConfig):
        """A `DataConfig` that makes a loader for each rank instead of splitting a data set."""

        def configure(self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
            """Make the loaders of all ranks. Ray Train calls this whenever it starts workers.

            Args:
                datasets: instances of `BatchPlan` by name.
                world_size: number of ranks (workers).
                _: further positional arguments of Ray, unused.
                __: further keyword arguments of Ray, unused.

            Returns:
                A dictionary for each rank, with its `RayDataLoader` for each name in `datasets`.
            """
            plans = {name: plan.for_workers(world_size) for name, plan in datasets.items()}
            return [{name: RayDataLoader(plan, rank, threads) for name, plan in plans.items()} for rank in range(world_size)]

    return LoaderPerRank(datasets_to_split=[])
