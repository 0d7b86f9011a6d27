"""The driver of a training on Ray: runs that are refused, that wait, that are stopped, and that fail. All without Ray."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import ray

from deconvnet.settings import ComputeSettings
from deconvnet.training import ray_trainer
from deconvnet.training.job import TrainingJob
from deconvnet.training.ray_callbacks import ReportForwarder
from deconvnet.training.ray_trainer import check_resources, train_on_ray
from deconvnet.training.trainer import Diverged
from infra import storage
from infra.errors import Interrupted, UserError
from infra.memory import SINGLE_ARENA_ENV
from infra.settings import ClusterSettings
from tests.deconvnet.ray_trainings import job, stage

NONE_YET = "  stopping: no workers run yet (again to stop at once)"
THEY_FINISH = "  stopping: the workers finish their step and leave a checkpoint (again to stop at once)"


def test_a_batch_that_can_t_be_shared_is_refused_before_ray_is_used(tmp_path: Path):
    with pytest.raises(UserError, match=r"train\.stage1\.batch 16 leaves some of 17 workers"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=17)))
    with pytest.raises(UserError, match=r"train\.stage1\.micro_batch 17 is more"):
        train_on_ray(job(tmp_path, settings=stage(micro_batch=17)))
    with pytest.raises(UserError, match=r"compute\.min_workers 3 is more"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=2, min_workers=3)))


@pytest.mark.parametrize(
    ("nodes", "grows", "waits"), [(1, False, False), (1, True, True), (2, False, True)], ids=["alone", "autoscaler", "two nodes"]
)
def test_a_cluster_that_is_too_small_is_waited_for_if_it_may_grow(nodes, grows, waits, logged, monkeypatch: pytest.MonkeyPatch):
    """It may grow by its autoscaler, or as nodes come back: a Ray of a single node has none to come back."""
    replaced = {"actor_slots": 1, "check_nodes": None, "alive_nodes": [{}] * nodes, "can_autoscale": grows}
    for name, value in replaced.items():
        monkeypatch.setattr(ray_trainer, name, lambda *_, value=value: value)
    with (
        nullcontext()
        if waits
        else pytest.raises(UserError, match=r"requests 3 training workers of 1 CPU each \(Ray has resources for 1\)")
    ):
        check_resources(ComputeSettings(workers=3), ClusterSettings())
    assert logged.messages == ["  waiting for resources for 3 training workers of 1 CPU each (Ray has resources for 1)"] * waits


def test_labels_of_training_nodes_that_no_node_has_are_refused_although_nodes_may_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": {}, "Resources": {"CPU": 8}}] * 2)
    with pytest.raises(UserError, match=r"labelled pool=gpu \(cluster\.training_nodes\)"):
        check_resources(ComputeSettings(), ClusterSettings(training_nodes="pool=gpu", autoscaling=False))


def run_of(job: TrainingJob, fit: Callable[[], Any], messages: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Run a training whose `fit` is given, after the queue has had messages for the driver."""
    looks = iter([list(messages)])
    queue = SimpleNamespace(take=SimpleNamespace(remote=lambda: next(looks, [])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get", lambda found: found)
        return ray_trainer._Run(job, SimpleNamespace(fit=fit), queue, 30).wait(lambda: False)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `train_on_ray` asks of Ray, which ends the training at once by `fit`."""
    found = SimpleNamespace(killed=[], fit=lambda: SimpleNamespace(return_value={"step_seconds": {}}))
    found.queue = SimpleNamespace(take=SimpleNamespace(remote=list))
    found.plan, found.dev = SimpleNamespace(steps_per_epoch=5), object()

    def actor(**options: Any) -> SimpleNamespace:
        found.actor = options
        return SimpleNamespace(remote=lambda: found.queue)

    def trainer(queue: Any, work: Any, **options: Any) -> SimpleNamespace:
        found.trainer = options
        return SimpleNamespace(fit=lambda: found.fit())

    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_TRAIN_")}
    node = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "remote", lambda kind: SimpleNamespace(options=actor))
    for name, value in {"get_runtime_context": lambda: node, "nodes": lambda: [{}], "get": lambda given: given}.items():
        monkeypatch.setattr(ray, name, value)
    monkeypatch.setattr(ray, "kill", found.killed.append)
    for name, value in {"batch_plan": found.plan, "dev_examples": found.dev, "log_plan": None}.items():
        monkeypatch.setattr(TrainingJob, name, lambda *_, value=value: value)
    monkeypatch.setattr(ray_trainer, "ElasticTrainer", trainer)
    monkeypatch.setattr(ray_trainer, "check_resources", lambda *_: None)
    monkeypatch.setattr(os, "environ", kept)
    return found


@pytest.mark.parametrize(("gpu", "least"), [(False, None), (True, 2)])
def test_ray_train_is_given_the_job_its_settings_and_the_queue(tmp_path: Path, doubles: SimpleNamespace, gpu, least, monkeypatch):
    compute = ComputeSettings(workers=4, min_workers=least, gpu=gpu, cpus_per_worker=3, max_failures=7)
    callback, disk, trained = ray.train.UserCallback(), object(), job(tmp_path, compute=compute)
    monkeypatch.setattr(storage, "filesystem", lambda uri: (disk, uri.removeprefix("/")))
    train_on_ray(trained, cluster=ClusterSettings(training_nodes="pool=b"), callbacks=[callback])
    given = {"job": trained, "plan": doubles.plan, "dev": doubles.dev, "queue": doubles.queue}
    assert doubles.trainer["train_loop_config"] == given
    scaling, run, torch = (doubles.trainer[f"{name}_config"] for name in ("scaling", "run", "torch"))
    assert scaling.num_workers == (4 if least is None else (2, 4)) and scaling.use_gpu == gpu
    assert scaling.label_selector == {"pool": "b"}
    assert scaling.resources_per_worker == ({"CPU": 3, "GPU": 1} if gpu else {"CPU": 3})
    assert (run.name, run.storage_path, run.storage_filesystem) == ("run", f"{tmp_path}/runs"[1:], disk)
    (forwarder, last) = run.callbacks
    assert isinstance(forwarder, ReportForwarder) and forwarder._queue is doubles.queue and last is callback
    assert (run.failure_config.max_failures, run.checkpoint_config.num_to_keep) == (7, 2)
    assert run.worker_runtime_env == {"env_vars": SINGLE_ARENA_ENV}
    assert (torch.backend, torch.timeout_s) == ("cpu:gloo,cuda:nccl" if gpu else "gloo", 600)
    assert doubles.actor == {"num_cpus": 0, "label_selector": {"ray.io/node-id": "here"}}


@pytest.mark.parametrize(("nodes", "seconds"), [(1, "1.0"), (2, "9")])
def test_ray_train_looks_often_for_lost_workers_unless_the_user_has_set_how_often(tmp_path, doubles, nodes, seconds, monkeypatch):
    """It looks for nodes that will be preempted only if there are others."""
    monkeypatch.setattr(ray, "nodes", lambda: [{}] * nodes)
    os.environ.update({"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": seconds} if seconds == "9" else {})
    train_on_ray(job(tmp_path))
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")} == {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": seconds,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        **({"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if nodes == 1 else {}),
    }


def test_the_actor_for_messages_ends_with_the_training(tmp_path: Path, doubles: SimpleNamespace):
    """Also if it fails; otherwise one would be left by each stage."""
    train_on_ray(job(tmp_path))
    assert doubles.killed == [doubles.queue]
    doubles.fit = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train_on_ray(job(tmp_path))
    assert doubles.killed == [doubles.queue] * 2


class Failed(Exception):
    """Stands for the errors of Ray Train, which hold the errors of the workers or that of the controller."""

    def __init__(self, **held: Any) -> None:
        super().__init__("a long traceback of Ray")
        self.__dict__ |= held


class Wrapped(Exception):
    """Stands for Ray's wrapper around the error of a worker."""

    def __init__(self, error: Exception) -> None:
        super().__init__("another traceback")
        self._base_exc = error


FULL, OTHER = OSError(errno.ENOSPC, "No space left on device"), ValueError("a fault of the program")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Failed(worker_failures={0: Wrapped(OTHER), 1: Wrapped(UserError("x is damaged"))}), UserError, "^x is damaged$"),
        (Failed(controller_failure=Wrapped(UserError("no bucket"))), UserError, "^no bucket$"),
        (Failed(controller_failure=Interrupted("stopped")), Interrupted, "while waiting for resources for the workers"),
        (Failed(worker_failures={0: Wrapped(FULL)}), UserError, r"the disk of .*/runs is full"),
        (Failed(worker_failures={0: Wrapped(OTHER)}), Failed, "a long traceback of Ray"),
        (FULL, UserError, r"the disk of .*/runs is full"),
        (OTHER, ValueError, "a fault of the program"),
    ],
)
def test_a_failed_run_ends_with_what_the_user_can_change_or_with_ray_s_own_error(tmp_path: Path, error, kind, message):
    def fit() -> NoReturn:
        raise error

    with pytest.raises(kind, match=message) as raised:
        run_of(job(tmp_path), fit)
    assert (raised.value is error) == (kind in (Failed, ValueError)) and type(raised.value) is kind


@pytest.mark.parametrize("least", [None, 1])
def test_the_number_of_workers_is_logged_when_it_changes(tmp_path: Path, least, logged):
    """Where it is fixed, only after a wait."""
    counts = [{"workers": number} for number in (2, 2, 1, 0, 0, 2)]
    compute = ComputeSettings(workers=2, min_workers=least)
    run_of(job(tmp_path, compute=compute), lambda: SimpleNamespace(return_value={"steps": 8}), counts)
    workers = "a training worker of 1 CPU" if least else "2 training workers of 1 CPU each"
    expected = [*(["2"] if least else []), "1", f"none yet; waiting for free resources for {workers}", "2"]
    assert logged.messages == [f"  workers: {each}" for each in expected]


def test_failures_and_nodes_that_leave_are_logged_between_the_progress(tmp_path: Path, logged):
    failed = [{1: "killed", 0: "lost a connection"}, {}]
    messages = [*({"failed": each} for each in failed), {"leaving": 12.4}, {"step": 3, "epoch": 0.5}]
    run_of(job(tmp_path), lambda: SimpleNamespace(return_value={"steps": 8}), messages)
    assert logged.messages == [
        "  workers failed (worker 1: killed; worker 0: lost a connection); "
        "Ray Train restarts them from the last checkpoint, or gives up",
        "  workers failed (no reason known); Ray Train restarts them from the last checkpoint, or gives up",
        "  a node will be preempted in 12 s: a checkpoint was saved",
        "  step 3/30, epoch 0.50",
    ]


@pytest.mark.parametrize(("first", "then", "said"), [([], [], NONE_YET), ([0], [2], THEY_FINISH), ([2], [], THEY_FINISH)])
def test_a_stop_says_what_the_workers_do_by_the_newest_message(tmp_path: Path, first, then, said, logged, monkeypatch):
    """The second look for messages comes with the stop request."""
    stopped, looks = threading.Event(), iter([first, then])
    queue = SimpleNamespace(
        take=SimpleNamespace(remote=lambda: [{"workers": number} for number in next(looks, [])]),
        request_stop=SimpleNamespace(remote=stopped.set),
    )
    trainer = SimpleNamespace(fit=lambda: stopped.wait(60) and SimpleNamespace(return_value={"interrupted": "at step 7"}))
    monkeypatch.setattr(ray, "get", lambda found: found)
    asked = iter([False])
    with pytest.raises(Interrupted, match="at step 7"):
        ray_trainer._Run(job(tmp_path), trainer, queue, 30).wait(lambda: next(asked, True))
    assert [message for message in logged.messages if "stopping" in message] == [said]


class Received(Exception):
    """Stands for the KeyboardInterrupt with which a command reacts to a signal. pytest itself would end at that."""


@pytest.mark.parametrize(
    ("returned", "error"),
    [({"steps": 8}, Received), ({"interrupted": "at step 7"}, Interrupted), ({"diverged": "the loss is nan"}, Diverged)],
)
def test_ctrl_c_that_comes_too_late_to_stop_the_workers_interrupts_the_driver(tmp_path: Path, returned, error, monkeypatch):
    """If they have stopped, the signal has done its work."""

    def receive(*_: Any) -> NoReturn:
        raise Received

    stopped, signals = threading.Event(), iter([signal.SIGINT])
    queue = SimpleNamespace(
        take=SimpleNamespace(remote=lambda: [signal.raise_signal(number) for number in signals] and []),
        request_stop=SimpleNamespace(remote=stopped.set),
    )
    trainer = SimpleNamespace(fit=lambda: stopped.wait(60) and SimpleNamespace(return_value=returned))
    monkeypatch.setattr(ray, "get", lambda found: found)
    monkeypatch.setattr(ray_trainer, "POLL_SECONDS", 0.01)
    before = signal.signal(signal.SIGINT, receive)
    try:
        with pytest.raises(error):
            ray_trainer._Run(job(tmp_path), trainer, queue, 30).wait(lambda: False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.is_set()
