"""How many workers a training is started with, and what is done when they don't start (Ray Train's elastic training).

Ray's own policy asks a coordinator for room that passes over node labels, hears of a dead node up to 20 s late, and keeps the room
of a killed driver's run for 3 minutes; `Elastic` looks at the nodes. And it grows only where a checkpoint has just been written.
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
"""Workers that have just started are left alone for so long, whatever room there is."""
RETRY_SECONDS = 1.0


class Elastic(ElasticScalingPolicy):
    """Starts as many workers as there is room for on living nodes of the wanted labels, and tells `queue` how many."""

    def __init__(self, scaling_config: ray.train.ScalingConfig, queue: Any) -> None:
        super().__init__(scaling_config)
        self._queue = queue
        self._waiting = False
        self._start_failed = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called in the controller."""
        self._start_failed = isinstance(current_state, ReschedulingState)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start with what the nodes have; where that was too much, others use some of it: with what is free."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._queue.put.remote({"workers": decision.num_workers})
            self._waiting = False
            return decision
        if not self._waiting:
            self._queue.put.remote({"workers": 0})
            self._waiting = True
        time.sleep(RETRY_SECONDS)  # Ray asks again at once
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Grow into what is free, once a checkpoint is written: starting again costs no step then."""
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
        """Room for workers, by node. Only a failed start holds nothing any more, so that what is free is all there is."""
        return self._room(free=self._start_failed)

    def _room(self, free: bool) -> dict[str, dict[str, float]]:
        nodes = {node["NodeID"]: node["Resources"] for node in live_nodes(self.scaling_config.label_selector)}
        if not free:
            return nodes
        return {node: resources for node, resources in available_resources_per_node().items() if node in nodes}


class RestartOnFailedStart(WorkerGroupCallback):
    """What Ray omits where a worker dies while all are being started: it neither gives their places back, so that no others would
    ever find room, nor tries again where the others' word (a lost connection) comes before the dead one's. First of the callbacks."""

    _group: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Called in the controller around a start."""
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
        """Called in the controller when the processes run, and before they find each other."""
        self._group = worker_group
