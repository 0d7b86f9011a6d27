"""The executor of a Ray cluster: what it asks Ray for, processes that die, nodes with labels, and CPUs that are free again."""

import gc
import os
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from infra.errors import Interrupted, UserError
from infra.runtime import ray_executor as module
from infra.runtime.executor import Actors
from infra.runtime.ray_executor import RayExecutor, _Actor
from infra.settings import ClusterSettings
from tests.infra.runtime.units import WORDS, deadly, doubled, napping, refusing, squares
from tests.waiting import wait_until

NODES = [
    {"Alive": True, "Labels": {"pool": "cpu"}, "Resources": {"CPU": 5.0}},
    {"Alive": True, "Labels": {"pool": "gpu"}, "Resources": {"CPU": 8.0, "GPU": 1.0}},
]
POOLS = {"data_nodes": "pool=cpu", "training_nodes": "pool=gpu"}


@pytest.mark.parametrize(
    ("actors", "cluster", "nodes", "most"),
    [
        (Actors(), {}, "cpu", 5),
        (Actors(cpus=2), {}, "cpu", 2),
        (Actors(cpus=2, max_workers=4), {}, "cpu", 4),
        (Actors(max_workers=99), {}, "cpu", 9),
        (Actors(cpus=3, gpus=0.5, retries=1), {}, "gpu", 2),
        (Actors(cpus=3, gpus=0.5), {"autoscaling": True}, "gpu", 9),
    ],
)
def test_a_job_asks_for_what_its_actors_need_and_for_as_many_as_have_room(
    actors: Actors, cluster: dict[str, Any], nodes: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    job = SimpleNamespace(map=lambda work, **options: asked.update(options) or job, iter_rows=lambda: (row for row in ()))
    monkeypatch.setattr(module, "_dataset", lambda units, labels: asked.update(labels) or job)
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    executor = RayExecutor(ClusterSettings(**POOLS, **cluster))
    assert list(executor.map_actors(dict.fromkeys(range(9), 1), napping, actors, **WORDS)) == []
    assert asked["pool"] == nodes and asked["fn_constructor_args"] == (napping, actors.cpus)
    assert (asked["num_cpus"], asked["num_gpus"]) == (actors.cpus, actors.gpus or None)
    assert (asked["compute"].min_size, asked["compute"].max_size) == (1, most)
    assert asked["ray_remote_args_fn"]() == {"max_task_retries": actors.retries}


@pytest.mark.parametrize(("training", "pool"), [(False, "cpu"), (True, "gpu")])
def test_a_stream_asks_for_what_it_was_given(training: bool, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    task = SimpleNamespace(remote=lambda work: ())
    monkeypatch.setattr(ray, "remote", lambda work: SimpleNamespace(options=lambda **options: asked.update(options) or task))
    assert list(RayExecutor(ClusterSettings(**POOLS)).stream(list, cpus=3, gpus=0.5, training=training)) == []
    assert asked == {"num_cpus": 3, "num_gpus": 0.5, "max_retries": module.TASK_RETRIES, "label_selector": {"pool": pool}}


@pytest.mark.parametrize(("make", "message"), [(refusing, "no model"), (partial(squares, Path(os.devnull), -1, 7), "squared")])
def test_an_actor_prepares_with_its_first_unit_and_answers_with_the_user_error(
    make: Callable[[int], Callable[[int, int], Any]], message: str
) -> None:
    answer = _Actor(make, 1)({"index": 3, "unit": pickle.dumps(7)})
    error = pickle.loads(answer["result"])
    assert answer["index"] == 3 and isinstance(error, UserError) and message in str(error)


@contextmanager
def error_is_kept_and_cpus_are_freed(kind: type[Exception], message: str) -> Iterator[None]:
    """The block raises an error, which is kept, as a notebook does. The CPUs of the job's actors are free all the same.

    An error that is not kept still has its frames until the garbage is collected.
    """
    all_cpus = ray.cluster_resources()["CPU"]
    gc.disable()
    try:
        with pytest.raises(kind, match=message) as kept:
            yield
        wait_until(lambda: ray.available_resources().get("CPU") == all_cpus, seconds=60)
        del kept
    finally:
        gc.enable()


@pytest.mark.ray
def test_actors_stop_after_a_result_and_free_their_cpus(ray_session: None) -> None:
    executor = RayExecutor(ClusterSettings(), lambda: True)
    with error_is_kept_and_cpus_are_freed(Interrupted, "the same command resumes it"):
        list(executor.map_actors(dict.fromkeys(range(200), 0), napping, Actors(max_workers=1), **WORDS))


@pytest.mark.ray
def test_a_unit_that_kills_its_actors_ends_the_job_and_frees_their_cpus(ray_executor: RayExecutor, tmp_path: Path) -> None:
    actors = Actors(max_workers=1, retries=1, remedy="count less")
    died = r"^counting: processes died 2 times while they worked on one of the numbers .*: count less$"
    with error_is_kept_and_cpus_are_freed(UserError, died):
        list(ray_executor.map_actors({0: 3}, partial(squares, tmp_path / "log", 3, -1), actors, **WORDS))
    assert (tmp_path / "log").read_text().count("unit 3") == 2


@pytest.mark.ray
def test_a_task_that_kills_its_processes_is_tried_again_and_then_ends_the_job(
    ray_executor: RayExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(module, "TASK_RETRIES", 1)  # each attempt takes seconds
    died = r"^dying: processes died 2 times while they worked on one of the parts .*: use nodes with more memory$"
    with pytest.raises(UserError, match=died):
        list(ray_executor.map({0: 1}, partial(deadly, log), title="dying"))
    assert log.read_text() == "attempt\n" * 2
    monkeypatch.setattr(module, "TASK_RETRIES", 0)
    with pytest.raises(UserError, match=r"^the processes of a task died 1 times .*: use nodes with more memory$"):
        list(ray_executor.stream(partial(deadly, log, 0, 1)))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("cluster", "actors", "message"),
    [
        ({}, Actors(cpus=99), "no node of this Ray has room for a process of 99 CPUs"),
        ({}, Actors(gpus=0.5), "no node of this Ray has room for a process of 1 CPU and 0.5 of a GPU"),
        ({"training_nodes": "pool=gpu"}, Actors(gpus=1), "no alive node labelled pool=gpu has room for a process of 1 CPU"),
        ({"data_nodes": "pool=cpu"}, Actors(), "no alive node labelled pool=cpu has room for a process of 1 CPU"),
    ],
)
def test_work_that_would_wait_for_ever_is_refused(
    ray_session: None, cluster: dict[str, str], actors: Actors, message: str
) -> None:
    executor = RayExecutor(ClusterSettings(**cluster))
    with pytest.raises(UserError, match=message):
        list(executor.map_actors({0: 3}, napping, actors, **WORDS))


@pytest.mark.ray
def test_the_labels_of_nodes_hold_for_all_of_a_ray_data_job(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an autoscaler is asked for nodes with these labels. A job that labels only training nodes asks for none."""
    asked: list[Any] = []
    function = "ray.data._internal.execution.streaming_executor.create_cluster_autoscaler"
    make = pkgutil.resolve_name(function)

    def spy(topology: Any, resource_manager: Any, data_context: Any, **options: Any) -> Any:
        asked.append(data_context.execution_options.label_selector)
        return make(topology, resource_manager, data_context, **options)

    monkeypatch.setattr(function, spy)
    here = f"ray.io/node-id={ray.get_runtime_context().get_node_id()}"
    selector = dict([here.split("=")])
    labelled = RayExecutor(ClusterSettings(data_nodes=here))
    assert dict(labelled.map({0: 3}, doubled, **WORDS)) == {0: 6}
    assert asked.pop() == selector

    def not_run(job: Any) -> Iterator[Any]:
        asked.append(job.context.execution_options.label_selector)
        yield from ()

    monkeypatch.setattr(ray.data.Dataset, "iter_rows", not_run)
    assert list(labelled.map_actors({0: 3}, napping, Actors(), **WORDS)) == []
    assert list(RayExecutor(ClusterSettings(training_nodes=here)).map({0: 3}, doubled, **WORDS)) == []
    assert asked == [selector, None]
    assert ray.data.DataContext.get_current().execution_options.label_selector is None
