"""Training batches that Ray Data makes outside the training process. `dataloader.ThreadedLoader` makes the same batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deconvnet.training.data.dataloader import BatchLoader, rebatched
from deconvnet.training.interfaces import Batch

WINDOWS_PER_JOB = 512
"""Largest number of windows (groups of examples that are read together) in one Ray Data job."""
_MiB = 2**20


class RayDataLoader(BatchLoader):
    """A source of training batches that are made by Ray Data, for a worker of Ray Train.

    A window is a group of examples that are read and shuffled together. One Ray task makes the examples of each window, with
    `threads` threads (an attribute of this class). The results arrive in order, and the memory that they take is limited.

    The Ray Data job is started by the worker, because only the worker knows the first step: it has loaded the checkpoint. The
    tasks run on the worker's node. They reserve no CPUs of their own but use those that the worker reserves
    (`compute.cpus_per_worker`).
    """

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's shares of consecutive global batches, as described in `BatchLoader.batches`."""
        windows = self.plan.window_range(first_step, stop_step)
        jobs = (windows[start : start + WINDOWS_PER_JOB] for start in range(0, len(windows), WINDOWS_PER_JOB))
        pieces = (piece for job in jobs for piece in self._pieces(job, first_step, stop_step))
        return rebatched(pieces, len(self.plan.batching.share(self.rank)))

    def _pieces(self, windows: range, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Make this rank's examples of some windows in a single Ray Data job.

        A window is a group of examples that are read and shuffled together.

        Args:
            windows: numbers of the windows, counted over all epochs.
            first_step: number of the first step whose examples are needed.
            stop_step: number of the step after the last one.

        Yields:
            The examples in order, in batches whose sizes may vary.
        """
        import ray
        from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy

        from infra.runtime.ray_compat import PollThrottle

        plan, rank, threads = self.plan, self.rank, self.threads

        def make_window(row: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            """Make this rank's examples of a window (a group of examples read together). This function runs in a Ray task.

            Args:
                row: a block of the Ray data set. Its column "item" holds the number of the window.

            Yields:
                Batches of examples: uint8 arrays of shape (n, 3, S, S) as "image" and (n, S, S) as "mask".
            """
            with ThreadPoolExecutor(threads) as pool:
                for window in row["item"].tolist():
                    for images, masks in plan.pieces(window, rank, first_step, stop_step, pool):
                        yield {"image": images, "mask": masks}

        share = len(plan.batching.share(rank))
        batch_bytes = 4 * share * plan.examples.size**2
        # `from_items` makes the blocks in this process. `ray.data.range` would start a task that reserves a CPU, and none may be
        # left.
        dataset = ray.data.from_items(list(windows), override_num_blocks=len(windows))
        dataset.context.enable_progress_bars = False
        dataset.context.custom_execution_callback_classes = [PollThrottle]
        dataset.context.target_max_block_size = max(_MiB, batch_bytes)
        dataset.context.execution_options = ExecutionOptions(
            preserve_order=True, resource_limits=ExecutionResources(object_store_memory=max(32 * _MiB, 8 * batch_bytes))
        )
        made = dataset.map_batches(
            make_window,
            batch_size=None,  # one block at a time, which is one window
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(2, plan.windows_per_epoch)),  # reads the next window while one is used
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
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
