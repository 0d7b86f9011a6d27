"""Everything of Ray that is not public API and that we use all the same, each with the reason.

Written against Ray 2.60. `tests/infra/runtime/test_ray_compat.py` fails where another Ray no longer has what is used here: look the
class or argument up in Ray's source at the path that its docstring names, and adapt this file. Nothing else of the project imports a
module of Ray with `_private`, `_internal` or `.v2.` in its name.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train.torch
from ray._private.state import available_resources_per_node
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.util import time_monotonic

from infra.runtime.cluster import live_nodes

GROW_SECONDS = 60.0
"""How long after a start no workers are added."""
RETRY_SECONDS = 1.0
"""Pause between two looks at the nodes while there are too few for the fewest workers."""


class Elastic(ElasticScalingPolicy):
    """Starts as many workers as the living nodes with the right labels have room for, and reports their number.

    Ray's own policy (ray/train/v2/_internal/execution/scaling_policy/elastic.py) asks a coordinator actor for resources. That
    coordinator ignores node labels, learns of a dead node up to 20 s late, and keeps the resources of a killed driver's run for 3
    minutes. This one looks at the nodes instead, and adds workers only just after a checkpoint, when a restart repeats no step.
    """

    def __init__(self, scaling_config: ray.train.ScalingConfig, queue: Any) -> None:
        """Keep what decisions are made from.

        Args:
            scaling_config: fewest and most workers, resources and node labels of each.
            queue: handle of a `ReportQueue` actor; {"workers": N} is put there, 0 while waiting for nodes.
        """
        super().__init__(scaling_config)
        self._queue = queue
        self._waiting = False
        self._start_failed = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called in the controller when its state changes; notes whether the last start failed."""
        self._start_failed = isinstance(current_state, ReschedulingState)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Decide how many workers to start: as many as the nodes have resources for or, after a failed start, free resources."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._queue.put.remote({"workers": decision.num_workers})
            self._waiting = False
            return decision
        if not self._waiting:
            self._queue.put.remote({"workers": 0})
            self._waiting = True
        time.sleep(RETRY_SECONDS)  # Ray calls again at once
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Decide whether to restart with more workers: where there are free resources and a checkpoint has just been written."""
        self._maybe_send_resource_request()  # so that a cluster that can grow does
        reports = [status.training_report for status in worker_group_status.worker_statuses.values()]
        saved = any(report is not None and report.checkpoint is not None for report in reports)
        now = worker_group_state.num_workers
        if not saved or now == self.scaling_config.max_workers or time_monotonic() < worker_group_state.start_time + GROW_SECONDS:
            return NoopDecision()
        could = min(now + self._count_possible_workers(self._room(free=True)), self.scaling_config.max_workers)
        if could == now:
            return NoopDecision()
        self._queue.put.remote({"workers": could})
        return self._get_resize_decision(could)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """Return the resources for workers, by node id.

        A dead run may still hold some, which will be released: so all resources count. After a failed start others hold them: then
        only free ones count.
        """
        return self._room(free=self._start_failed)

    def _room(self, free: bool) -> dict[str, dict[str, float]]:
        """Return the resources, or the free ones, of living nodes with the right labels, by node id."""
        nodes = {node["NodeID"]: node["Resources"] for node in live_nodes(self.scaling_config.label_selector)}
        if not free:
            return nodes
        return {node: resources for node, resources in available_resources_per_node().items() if node in nodes}


class RestartOnFailedStart(WorkerGroupCallback):
    """Cleans up and restarts where a worker dies while the workers are being started; must be the first of the callbacks.

    Ray does neither: it keeps the resources of the others, so that no new workers ever find room, and gives up if another worker's error
    (a lost connection) arrives before the dead worker's (ray/train/v2/_internal/execution/worker_group/worker_group.py, `_start_impl`).
    """

    _group: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Called in the controller around a start; releases the workers' resources if it fails."""
        self._group = None
        try:
            yield
        except Exception as error:
            if self._group is not None:
                self._group.shutdown()
            if isinstance(error, RayTaskError):
                raise WorkerGroupError("the workers did not start", {0: error}) from error
            raise

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called in the controller when the processes run, before they connect to each other."""
        self._group = worker_group


@contextmanager
def actor_retries(count: int) -> Iterator[dict[str, Any]]:
    """Keywords of `Dataset.map` that limit how often a unit is tried again after its actor died.

    Ray Data retries for ever by default (`max_task_retries` -1, ray/data/_internal/execution/operators/actor_pool_map_operator.py,
    `_apply_default_remote_args`), so a unit that kills every actor would never end the job. Both ways to change that,
    `ray_remote_args` and `ray_remote_args_fn`, are deprecated in Ray 2.60 for removal in 2.64, and no named argument replaces them yet
    (ray/data/dataset.py).

    Args:
        count: retries of one unit.

    Yields:
        the keywords. The deprecation warning is silent inside the block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield {"ray_remote_args_fn": lambda: {"max_task_retries": count}}


class PollThrottle(ExecutionCallback):
    """Makes Ray Data's executor, a thread of the training worker, sleep between its steps.

    While it holds tasks back it never sleeps by itself (ray/data/_internal/execution/streaming_executor.py, `run`), and took half of
    the training's speed. `DataContext.custom_execution_callback_classes`, which it is registered by, is public; its base class is not.
    """

    seconds = 0.1

    def on_execution_step(self, executor: Any) -> None:
        """Called by the executor after each of its steps."""
        time.sleep(self.seconds)


class ElasticTrainer(ray.train.torch.TorchTrainer):
    """TorchTrainer with our scaling policy where the number of workers may change, and without the placement group cleaner.

    Both are chosen in private methods of ray/train/v2/api/data_parallel_trainer.py. The cleaner is a detached actor that frees the
    workers' resources after the controller died. Ray does that anyway when the driver ends, and the actor polls the dashboard every
    second, which a Ray started for one run doesn't have.
    """

    def __init__(self, queue: Any, *args: Any, **options: Any) -> None:
        """Take the handle of a `ReportQueue` actor and TorchTrainer's arguments."""
        super().__init__(*args, **options)
        self._queue = queue

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        """Run the controller, with `Elastic` where the number of workers may change."""
        if self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = Elastic(self.scaling_config, self._queue)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        """Return Ray's callbacks without the cleaner, ours first."""
        usual = super()._create_default_callbacks()
        return [RestartOnFailedStart(), *(c for c in usual if not isinstance(c, PlacementGroupCleanerCallback))]
