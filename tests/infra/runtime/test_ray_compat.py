"""Ray still has the private parts that `ray_compat` uses, as it uses them; a failure here names what another Ray has changed."""

import inspect
import math
import stat
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from ray.data._internal.cluster_autoscaler.default_cluster_autoscaler_v2 import DefaultClusterAutoscalerV2
from ray.data._internal.cluster_autoscaler.default_cluster_autoscaler_v2 import _NodeResourceSpec as Spec
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.preemption import PreemptionContext, PreemptionWatcher
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext, WorkerGroupState, WorkerStatus
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api import data_parallel_trainer

from infra.errors import Interrupted
from infra.runtime import cluster, ray_compat
from tests.infra.deploy.files import POOLS
from tests.infra.runtime.scheduler import NodeTypeConfig, launched, launched_for_tasks


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_ray_is_of_the_release_that_was_read() -> None:
    assert ray.__version__.startswith("2.60."), "read ray_compat.py again beside this Ray's source, then raise the release here"


def test_a_map_s_tasks_and_actors_take_the_number_of_retries() -> None:
    assert "ray_remote_args_fn" in parameters(ray.data.Dataset.map)
    assert not [name for name in parameters(ray.data.Dataset.map) if "retries" in name], (
        "Ray has an argument for it now: use that"
    )
    for limit in ({"max_retries": 1}, {"max_task_retries": 2}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with ray_compat.map_retries(**limit) as keywords:
                assert keywords["ray_remote_args_fn"]() == limit
                warnings.warn("silent here", DeprecationWarning, stacklevel=1)


def test_the_data_executor_has_an_autoscaler_before_its_callbacks_are_called() -> None:
    assert isinstance(ray.data.DataContext().custom_execution_callback_classes, list)
    source = inspect.getsource(StreamingExecutor.execute)
    assert source.index("self._cluster_autoscaler = ") < source.index("callback.before_execution_starts(self)")
    assert "self._data_context = " in inspect.getsource(StreamingExecutor.__init__)
    autoscaler = inspect.getsource(DefaultClusterAutoscalerV2)
    assert "self._get_node_counts = get_node_counts" in autoscaler and "self._get_node_counts()" in autoscaler


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, NodeTypeConfig]:
    """The groups of infra/deploy/kuberay. Of each, one node lives, and the head."""
    found = {}
    for name, group in POOLS.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": float(limits["cpu"]), "memory": float(limits["memory"].removesuffix("Gi")) * 2**30}
        resources |= {"GPU": float(gpus)} if (gpus := limits.get("nvidia.com/gpu")) else {}
        found[name] = NodeTypeConfig(name, 0, group["maxReplicas"], resources=resources, labels=group["labels"])
    alive = [{"Alive": True, "Labels": group.labels, "Resources": group.resources} for group in found.values()]
    alive.append({"Alive": True, "Labels": {"pool": "cpu"}, "Resources": {"CPU": 4, "memory": 1e9, "node:__internal_head__": 1}})
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    return found


def data_executor(groups: dict[str, NodeTypeConfig], labels: dict[str, str] | None) -> SimpleNamespace:
    """An executor of Ray Data whose autoscaler knows the shapes of all groups."""
    shapes = {Spec.from_bundle(group.resources): 1 for group in groups.values()}
    context = SimpleNamespace(execution_options=SimpleNamespace(label_selector=labels))
    return SimpleNamespace(_data_context=context, _cluster_autoscaler=SimpleNamespace(_get_node_counts=lambda: shapes))


@pytest.mark.parametrize(
    ("pool", "by_labels_alone", "own"),
    [("cpu", {}, {"cpu": 2}), ("gpu", {"gpu": 4, "gpu4": 2}, {"gpu": 2, "gpu4": 2})],
)
def test_a_job_with_labels_asks_only_for_nodes_of_its_shape(
    groups: dict[str, NodeTypeConfig], pool: str, by_labels_alone: dict[str, int], own: dict[str, int]
) -> None:
    """With labels alone, the CPU nodes' shape is requested with pool=gpu, and the GPU nodes' with pool=cpu: no node has these."""
    executor = data_executor(groups, {"pool": pool})

    def bundles() -> list[dict[str, float]]:
        return [
            spec.to_bundle() for spec, count in executor._cluster_autoscaler._get_node_counts().items() for _ in range(count + 1)
        ]

    # Nodes that exist are not told to the scheduler here.
    assert launched(groups, bundles(), {}) == {"cpu": 2, "gpu": 2, "gpu4": 2}
    assert launched(groups, bundles(), {"pool": pool}) == by_labels_alone
    ray_compat.LabelledNodesCallback().before_execution_starts(executor)
    assert launched(groups, bundles(), {"pool": pool}) == own


def test_tasks_of_one_pool_start_no_nodes_of_another_even_if_they_are_more_than_it_has_cpus_for(
    groups: dict[str, NodeTypeConfig],
) -> None:
    cpus = groups["cpu"].max_worker_nodes * groups["cpu"].resources["CPU"]
    assert cpus < 200
    assert launched_for_tasks(groups, 200, {"pool": "cpu"}) == {"cpu": groups["cpu"].max_worker_nodes}
    assert set(launched_for_tasks(groups, 200, {})) > {"cpu"}, "without the label, the others' CPUs are used"


def test_a_job_without_labels_or_without_nodes_of_its_own(groups: dict[str, NodeTypeConfig]) -> None:
    executor = data_executor(groups, None)
    ray_compat.LabelledNodesCallback().before_execution_starts(executor)
    assert len(executor._cluster_autoscaler._get_node_counts()) == len(groups)
    executor = data_executor(groups, {"pool": "other"})
    ray_compat.LabelledNodesCallback().before_execution_starts(executor)
    assert executor._cluster_autoscaler._get_node_counts() == {}


def test_the_trainer_makes_its_policy_and_callbacks_where_we_replace_them() -> None:
    trainer = data_parallel_trainer.DataParallelTrainer
    assert issubclass(ray_compat.ElasticTrainer, trainer)
    assert parameters(trainer._create_default_callbacks) == ["self"]
    assert "scaling_policy=create_scaling_policy(" in inspect.getsource(trainer.fit)
    assert "PlacementGroupCleanerCallback()" in inspect.getsource(trainer._create_default_callbacks)
    assert parameters(trainer._initialize_and_run_controller) == ["self", "controller_init_kwargs"]
    assert isinstance(ray.train.ScalingConfig.elasticity_enabled, property)


@pytest.mark.parametrize(("workers", "changes"), [(2, False), ((1, 2), True)])
def test_the_trainer_s_callbacks_are_ours_and_ray_s_without_the_cleaner_and_a_number_that_changes_needs_our_policy(
    workers: Any, changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of workers is reported by the policy or, without it, by the callback."""
    cleaner, other, base = PlacementGroupCleanerCallback(), object(), data_parallel_trainer.DataParallelTrainer
    monkeypatch.setattr(base, "_create_default_callbacks", lambda self: [cleaner, other])
    monkeypatch.setattr(base, "_initialize_and_run_controller", lambda self, scaling_policy: scaling_policy)
    trainer = object.__new__(ray_compat.ElasticTrainer)
    trainer._queue, trainer.scaling_config = object(), ray.train.ScalingConfig(num_workers=workers)
    first, *more = trainer._create_default_callbacks()
    policy = trainer._initialize_and_run_controller(scaling_policy=None)
    assert isinstance(first, ray_compat.WorkerStartCallback) and more == [other]
    assert isinstance(policy, ray_compat.Elastic) == changes and first._report == (not changes)
    assert {each._queue for each in (first, policy) if each} == {trainer._queue}


def test_the_scaling_policy_has_what_ours_overrides_and_calls() -> None:
    for name in ("make_decision_for_non_running_worker_group", "make_decision_for_running_worker_group"):
        assert parameters(getattr(ray_compat.Elastic, name)) == parameters(getattr(ElasticScalingPolicy, name)), name
    for name in ("_get_reserved_resources", "_count_possible_workers", "_get_resize_decision", "_maybe_send_resource_request"):
        assert callable(getattr(ElasticScalingPolicy, name)), name
    assert parameters(ElasticScalingPolicy._get_reserved_resources) == ["self"]
    assert issubclass(ScalingPolicy, ControllerCallback)
    assert parameters(ControllerCallback.after_controller_state_update)[1:] == ["previous_state", "current_state"]
    assert inspect.isclass(ReschedulingState) and inspect.isclass(NoopDecision)
    assert "num_workers" in parameters(ResizeDecision)
    assert {"start_time", "workers"} <= set(parameters(WorkerGroupState)) and isinstance(WorkerGroupState.num_workers, property)
    assert "training_report" in parameters(WorkerStatus)


def test_a_worker_keeps_the_notice_of_a_preemption_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "train_context.preemption_context.preemption_info = info" in inspect.getsource(RayTrainWorker.mark_preempt)
    found = SimpleNamespace(preemption_context=PreemptionContext())
    monkeypatch.setattr(ray_compat, "get_train_context", lambda: found)
    assert ray_compat.preemption_deadline() is None
    for deadline_ms, expected in ((1_700_000_000_500, 1_700_000_000.5), (None, math.inf)):
        found.preemption_context.preemption_info = ray.train.PreemptionInfo(deadline_ms, {"a": [0]})
        assert ray_compat.preemption_deadline() == expected
    assert parameters(ray_compat.state.get_draining_nodes) == []
    assert "get_draining_nodes() or {}" in inspect.getsource(PreemptionWatcher._poll_once)


def test_worker_group_callbacks_are_called_where_a_start_can_fail() -> None:
    for name in ("on_worker_group_start", "before_worker_group_start", "after_worker_group_start"):
        assert parameters(getattr(ray_compat.WorkerStartCallback, name)) == parameters(getattr(WorkerGroupCallback, name)), name
    assert "num_workers" in parameters(WorkerGroupContext)
    assert "raise WorkerGroupStartupTimeoutError(" in inspect.getsource(WorkerGroup._start_impl)
    assert callable(WorkerGroup.shutdown)
    assert parameters(ray.train.WorkerGroupError)[:2] == ["error_message", "worker_failures"]


def start_callback(answer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[ray_compat.WorkerStartCallback, list[int]]:
    """The callback of a start of two workers, and the numbers it reports. `answer`: whether the driver stops, or the error."""

    def get(reference: Any) -> bool:
        if isinstance(reference, Exception):
            raise reference
        return bool(reference)

    monkeypatch.setattr(ray, "get", get)
    sent: list[int] = []
    put = SimpleNamespace(remote=lambda message: sent.append(message["workers"]))
    guard = ray_compat.WorkerStartCallback(SimpleNamespace(stop_requested=SimpleNamespace(remote=lambda: answer), put=put), True)
    guard.before_worker_group_start(SimpleNamespace(num_workers=2))
    return guard, sent


@pytest.mark.parametrize(
    ("answer", "stops"),
    [(True, True), (False, False), (ActorDiedError(), True), (ActorUnavailableError("no route to its node", None), False)],
)
def test_a_start_of_workers_ends_if_the_driver_asks_for_it_or_is_gone_but_not_if_it_is_out_of_reach_for_a_moment(
    answer: Any, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, sent = start_callback(answer, monkeypatch)
    with pytest.raises(Interrupted) if stops else nullcontext():
        guard.after_worker_group_start(None)
    assert sent == ([] if stops else [2])


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RayTaskError("init", "a traceback", OSError("lost connection")), WorkerGroupError),
        (WorkerGroupStartupFailedError("a worker died"), WorkerGroupStartupFailedError),
        (Interrupted("stopped"), Interrupted),
    ],
)
def test_a_start_that_fails_ends_the_workers_that_run_and_only_those(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts the workers again after a WorkerGroupError, and gives up the training after a RayTaskError."""
    guard, _ = start_callback(False, monkeypatch)
    ended: list[bool] = []
    for starts in (True, False):
        with pytest.raises(raised) as found, guard.on_worker_group_start():
            if starts:
                guard.after_worker_group_start(SimpleNamespace(shutdown=lambda: ended.append(True)))
            raise error
        assert found.value is error or found.value.worker_failures == {0: error}
        assert ended == [True]


@pytest.mark.parametrize(("stop", "raised"), [(False, WorkerGroupStartupTimeoutError), (True, Interrupted)])
def test_a_start_that_finds_no_room_is_reported_and_tried_again_unless_the_driver_stops(
    stop: bool, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, sent = start_callback(stop, monkeypatch)
    with pytest.raises(raised), guard.on_worker_group_start():
        raise WorkerGroupStartupTimeoutError(2)
    assert sent == [0]


@pytest.mark.ray
def test_the_free_resources_of_each_node_are_known(ray_session: None) -> None:
    (node,) = ray.nodes()
    free = ray_compat.available_resources_per_node()[node["NodeID"]]
    # A resource that is in use to the last unit is left out, as CPUs are while workers of an earlier test end.
    assert free and all(free[name] <= node["Resources"][name] for name in free)


@pytest.mark.ray
def test_of_a_ray_that_was_joined_its_head_and_the_socket_of_its_object_store_are_watched(ray_session: None) -> None:
    address = ray.get_runtime_context().gcs_address
    socket, head = cluster._watchable(address)
    assert socket and stat.S_ISSOCK(Path(socket).stat().st_mode) and head == address
    assert cluster._watchable(None) == (socket, None) and cluster._watchable(f"ray://{address}") == (None, None)
