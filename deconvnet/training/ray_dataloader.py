"""Batches for a Ray Train worker, made outside its process by Ray Data: the same as `dataloader.ThreadedLoader` makes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvnet.training.dataloader import BatchPlan, rebatched
from deconvnet.training.interfaces import Batch

WINDOWS_PER_JOB = 512
_MiB = 2**20


@dataclass(frozen=True)
class RayDataLoader:
    """A rank's share of the batches, made by Ray Data: a task for each window, whose blocks arrive in order and are bounded.

    The Ray Data job starts at the step that is requested, which only the worker knows: it has loaded the checkpoint. Its tasks
    run on the worker's node and reserve no CPUs: they are part of those that the worker reserves (`compute.cpus_per_worker`).

    Attributes:
        plan: the global batches, for the number of workers there is.
        rank: whose share.
        threads: threads of a task that decode and augment.
    """

    plan: BatchPlan
    rank: int = 0
    threads: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.plan.steps_per_epoch

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's share of the global steps [first_step, stop_step), a batch for each step."""
        windows = self.plan.window_range(first_step, stop_step)
        jobs = (windows[start : start + WINDOWS_PER_JOB] for start in range(0, len(windows), WINDOWS_PER_JOB))
        pieces = (piece for job in jobs for piece in self._pieces(job, first_step, stop_step))
        return rebatched(pieces, len(self.plan.batching.share(self.rank)))

    def _pieces(self, windows: range, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's examples of some windows, by one Ray Data job."""
        import ray
        from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy

        from infra.runtime.ray_compat import PollThrottle

        plan, rank, threads = self.plan, self.rank, self.threads

        def make_window(row: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            """Make this rank's examples of the windows in a block, in pieces."""
            with ThreadPoolExecutor(threads) as pool:
                for window in row["item"].tolist():
                    for images, masks in plan.pieces(window, rank, first_step, stop_step, pool):
                        yield {"image": images, "mask": masks}

        share = len(plan.batching.share(rank))
        batch_bytes = 4 * share * plan.examples.size**2
        # The numbers of windows are given as blocks: reading even a range would reserve a CPU, and there may be none left.
        dataset = ray.data.from_items(list(windows), override_num_blocks=len(windows))
        dataset.context.enable_progress_bars = False
        dataset.context.custom_execution_callback_classes = [PollThrottle]
        dataset.context.target_max_block_size = max(_MiB, batch_bytes)
        dataset.context.execution_options = ExecutionOptions(
            preserve_order=True, resource_limits=ExecutionResources(object_store_memory=max(32 * _MiB, 8 * batch_bytes))
        )
        made = dataset.map_batches(
            make_window,
            batch_size=None,  # a block, which is one window
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(2, plan.windows_per_epoch)),  # the next window is read while one is used
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        )
        for batch in made.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2):
            yield batch["image"], batch["mask"]


def ray_data_config(threads: int) -> Any:
    """Return a `ray.train.DataConfig` under which a trainer's dataset is a `BatchPlan` and each worker's shard a `RayDataLoader`.

    Ray calls it for the shards whenever it starts workers, with their number at that time.

    Args:
        threads: threads of a Ray Data task.
    """
    from ray.train import DataConfig

    class LoaderPerRank(DataConfig):
        """Gives each rank its own loader instead of splitting a dataset."""

        def configure(self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
            plans = {name: plan.for_workers(world_size) for name, plan in datasets.items()}
            return [{name: RayDataLoader(plan, rank, threads) for name, plan in plans.items()} for rank in range(world_size)]

    return LoaderPerRank(datasets_to_split=[])
