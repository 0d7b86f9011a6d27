"""Elastic training with Ray Train: how many workers a run is started with, and what happens when they fail to start.

Ray's own policy asks a coordinator actor for resources. That coordinator ignores node labels, learns of a dead node up to 20 s late, and
keeps the resources of a killed driver's run for 3 minutes. `Elastic` looks at the nodes instead. It also adds workers only just after a
checkpoint, when a restart repeats no step.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayTaskError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.util import time_monotonic
from ray.train.v2.api.exceptions import WorkerGroupError

from infra.runtime.cluster import live_nodes

GROW_SECONDS = 60.0
"""How long after a start no workers are added."""
RETRY_SECONDS = 1.0
"""Pause between two looks at the nodes while there are too few for the fewest workers."""


class Elastic(ElasticScalingPolicy):
    """Starts as many workers as the living nodes with the right labels have room for, and reports their number."""

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
    (a lost connection) arrives before the dead worker's.
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
