"""Ray still has the private parts that `ray_compat` uses, as it uses them; a failure here names what another Ray has changed."""

import ast
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupState, WorkerStatus
from ray.train.v2.api import data_parallel_trainer

from infra.runtime import ray_compat
from tests.conftest import ROOT

PACKAGES = ("infra", "proposals", "deconvnet", "workflows")


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_only_this_file_imports_private_modules_of_ray() -> None:
    private = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("ray.") and ("._" in name or ".v2" in name) for name in names):
                private[path.relative_to(ROOT)] = names
    assert set(private) == {Path("infra/runtime/ray_compat.py")}


def test_ray_is_of_the_release_that_was_read() -> None:
    assert ray.__version__.startswith("2.60."), "read ray_compat.py again beside this Ray's source, then raise the release here"


def test_a_map_s_actors_take_the_number_of_retries() -> None:
    assert "ray_remote_args_fn" in parameters(ray.data.Dataset.map)
    assert not [name for name in parameters(ray.data.Dataset.map) if "retries" in name], (
        "Ray has an argument for it now: use that"
    )
    with warnings.catch_warnings(), ray_compat.actor_retries(2) as keywords:
        assert keywords["ray_remote_args_fn"]() == {"max_task_retries": 2}
        warnings.warn("silent here", DeprecationWarning, stacklevel=1)


def test_the_data_executor_calls_its_callbacks_after_each_step() -> None:
    assert parameters(ray_compat.PollThrottle.__base__.on_execution_step) == ["self", "executor"]
    assert "callback.on_execution_step(self)" in inspect.getsource(StreamingExecutor)
    assert isinstance(ray.data.DataContext().custom_execution_callback_classes, list)


def test_the_trainer_makes_its_policy_and_callbacks_where_we_replace_them() -> None:
    trainer = data_parallel_trainer.DataParallelTrainer
    assert issubclass(ray_compat.ElasticTrainer, trainer)
    assert parameters(trainer._create_default_callbacks) == ["self"]
    assert "scaling_policy=create_scaling_policy(" in inspect.getsource(trainer.fit)
    assert "PlacementGroupCleanerCallback()" in inspect.getsource(trainer._create_default_callbacks)
    assert parameters(trainer._initialize_and_run_controller) == ["self", "controller_init_kwargs"]
    assert isinstance(ray.train.ScalingConfig.elasticity_enabled, property)


def test_the_trainer_s_callbacks_are_ours_and_ray_s_without_the_cleaner(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaner, other = PlacementGroupCleanerCallback(), object()
    monkeypatch.setattr(data_parallel_trainer.DataParallelTrainer, "_create_default_callbacks", lambda self: [cleaner, other])
    made = ray_compat.ElasticTrainer._create_default_callbacks(object.__new__(ray_compat.ElasticTrainer))
    assert isinstance(made[0], ray_compat.RestartOnFailedStart) and made[1:] == [other]


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


def test_worker_group_callbacks_are_called_where_a_start_can_fail() -> None:
    for name in ("on_worker_group_start", "after_worker_group_start"):
        assert parameters(getattr(ray_compat.RestartOnFailedStart, name)) == parameters(getattr(WorkerGroupCallback, name)), name
    assert callable(WorkerGroup.shutdown)
    assert parameters(ray.train.WorkerGroupError)[:2] == ["error_message", "worker_failures"]


@pytest.mark.ray
def test_the_free_resources_of_each_node_are_known(ray_session: None) -> None:
    (node,) = ray.nodes()
    assert ray_compat.available_resources_per_node()[node["NodeID"]]["CPU"] <= node["Resources"]["CPU"]
    assert ray_compat.time_monotonic() > 0
