"""How many workers are started: as many as the living, labelled nodes have room for; more are added only after a checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2._internal.execution.scaling_policy import NoopDecision

from infra.runtime import ray_compat
from infra.runtime.cluster import actor_slots, alive_nodes
from infra.runtime.ray_compat import GROW_SECONDS, Elastic


def node(name: str, cpus: int, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus}, "Labels": labels}


class Queue:
    def __init__(self) -> None:
        self.taken: list[int] = []
        self.put = SimpleNamespace(remote=lambda message: self.taken.append(message["workers"]))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Three nodes, of which two are for training, and a clock; tests change them."""
    state = SimpleNamespace(
        nodes=[node("head", 8, pool="head"), node("a", 2, pool="gpu", zone="x"), node("b", 2, pool="gpu")],
        free={},
        now=1000.0,
        leaving={},
        requests=[],
    )
    monkeypatch.setattr(ray_compat, "state", SimpleNamespace(get_draining_nodes=lambda: state.leaving))
    monkeypatch.setattr(ray_compat.ray, "nodes", lambda: state.nodes)
    monkeypatch.setattr(ray_compat, "available_resources_per_node", lambda: state.free)
    monkeypatch.setattr(ray_compat, "time_monotonic", lambda: state.now)
    monkeypatch.setattr(ray_compat.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Elastic, "_maybe_send_resource_request", lambda self: state.requests.append("for the most workers"))
    return state


def policy(fewest: int = 1, most: int = 4, **labels: str) -> Elastic:
    config = ScalingConfig(num_workers=(fewest, most), resources_per_worker={"CPU": 1}, label_selector=labels or None)
    return Elastic(config, Queue())


def started(decision: Any) -> int:
    return 0 if isinstance(decision, NoopDecision) else decision.num_workers


def test_live_nodes_are_alive_and_have_all_labels(cluster):
    cluster.nodes.append(node("c", 2, alive=False, pool="gpu"))
    assert [n["NodeID"] for n in alive_nodes()] == ["head", "a", "b"]
    assert [n["NodeID"] for n in alive_nodes({"pool": "gpu"})] == ["a", "b"]
    assert [n["NodeID"] for n in alive_nodes({"pool": "gpu", "zone": "x"})] == ["a"]
    assert alive_nodes({"pool": "tpu"}) == []


@pytest.mark.parametrize(
    ("labels", "cpus", "gpus", "expected"),
    [
        ({}, 2, 0, 6),
        ({"pool": "gpu"}, 1, 0, 4),
        ({"pool": "gpu"}, 1.5, 0, 2),
        ({"pool": "gpu"}, 1, 0.5, 2),
        ({"pool": "gpu"}, 2, 0.5, 1),
        ({"pool": "head"}, 1, 1, 0),
        ({"pool": "tpu"}, 1, 0, 0),
    ],
)
def test_actors_have_room_on_each_living_labelled_node_as_whole_ones(cluster, labels, cpus, gpus, expected):
    cluster.nodes.append(node("c", 2, alive=False, pool="gpu"))
    cluster.nodes[1]["Resources"]["GPU"] = 1
    assert actor_slots(labels, cpus, gpus) == expected


def test_as_many_workers_start_as_the_labelled_nodes_have_room_for(cluster):
    chosen = policy(1, 6, pool="gpu")
    assert started(chosen.make_decision_for_non_running_worker_group()) == 4
    cluster.nodes[2]["Alive"] = False
    assert started(chosen.make_decision_for_non_running_worker_group()) == 2
    assert started(policy(1, 3).make_decision_for_non_running_worker_group()) == 3
    assert chosen._queue.taken == [4, 2] and len(cluster.requests) == 3


def test_no_workers_start_on_nodes_that_will_be_taken_away(cluster):
    """Neither after a notice nor after a failed start, nor are they added there."""
    chosen = policy(1, 6, pool="gpu")
    cluster.leaving = {"b": 1700000000000, "other": 0}
    assert started(chosen.make_decision_for_non_running_worker_group()) == 2
    cluster.free = {"a": {"CPU": 1}, "b": {"CPU": 2}}
    chosen.after_controller_state_update(None, ReschedulingState(None))
    assert started(chosen.make_decision_for_non_running_worker_group()) == 1
    cluster.leaving = {}
    assert started(chosen.make_decision_for_non_running_worker_group()) == 3


def test_too_few_nodes_are_waited_for_and_reported_once(cluster):
    chosen = policy(5, 6, pool="gpu")
    assert [started(chosen.make_decision_for_non_running_worker_group()) for _ in range(3)] == [0, 0, 0]
    cluster.nodes.append(node("c", 2, pool="gpu"))
    assert started(chosen.make_decision_for_non_running_worker_group()) == 6
    assert chosen._queue.taken == [0, 6]


def test_a_failed_start_is_retried_with_free_resources(cluster):
    """But not after a failure in training: the dead run's resources will be released."""
    chosen = policy(1, 4, pool="gpu")
    cluster.free = {"head": {"CPU": 8}, "a": {"CPU": 1}, "b": {}, "gone": {"CPU": 9}}
    chosen.after_controller_state_update(None, RestartingState(None))
    assert started(chosen.make_decision_for_non_running_worker_group()) == 4
    chosen.after_controller_state_update(None, ReschedulingState(None))
    assert started(chosen.make_decision_for_non_running_worker_group()) == 1


def test_workers_are_added_after_a_checkpoint_and_not_soon_after_a_start(cluster):
    chosen = policy(1, 4, pool="gpu")
    cluster.free = {"head": {"CPU": 8}, "b": {"CPU": 2}}
    workers = SimpleNamespace(num_workers=1, start_time=cluster.now)
    plain = SimpleNamespace(training_report=SimpleNamespace(checkpoint=None))
    silent, saved = SimpleNamespace(training_report=None), SimpleNamespace(training_report=SimpleNamespace(checkpoint="x"))

    def added(*statuses: Any) -> int:
        status = SimpleNamespace(worker_statuses=dict(enumerate(statuses)))
        cluster.requests.clear()
        decision = chosen.make_decision_for_running_worker_group(workers, status)
        assert len(cluster.requests) == 1, "an autoscaler is asked for nodes each time"
        return started(decision)

    cluster.now += GROW_SECONDS - 1
    assert added(saved) == 0
    cluster.now += 2
    assert (added(plain), added(silent), added(silent, saved)) == (0, 0, 3)
    cluster.free = {"b": {"CPU": 0}}
    assert added(saved) == 0
    cluster.free, workers.num_workers = {"b": {"CPU": 2}}, 3
    assert added(saved) == 4
    workers.num_workers = 4
    assert added(saved) == 0
