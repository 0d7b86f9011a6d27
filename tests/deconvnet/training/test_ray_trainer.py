"""A stage on Ray Train has the losses of one process, also if a worker is killed; runs wait for resources or are refused."""

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from deconvnet.models import checkpoint
from deconvnet.settings import ComputeSettings
from deconvnet.training.job import TrainingJob
from deconvnet.training.local_trainer import train_locally
from deconvnet.training.ray_trainer import check_resources, train_on_ray
from infra.errors import Interrupted, UserError
from infra.runtime.report_queue import ReportQueue
from infra.settings import ClusterSettings
from tests.deconvnet.ray_trainings import CLASSES, WHILE_WRITTEN, job, losses, processes_below, reported_steps, stage
from tests.deconvnet.training_tables import examples_table, images_table
from tests.waiting import wait_until


@pytest.mark.ray
def test_more_resources_than_ray_has_are_refused(tmp_path: Path, ray_session, logged):
    with pytest.raises(UserError, match=r"8 training workers of 1 CPU each \(Ray has resources for 2\): lower compute.workers"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=8)))
    with pytest.raises(
        UserError, match=r"a training worker of 1 CPU and a GPU \(Ray has resources for 0\).*compute.gpu to false"
    ):
        train_on_ray(job(tmp_path, compute=ComputeSettings(gpu=True)))
    with pytest.raises(UserError, match=r"requests 3 training workers"):
        check_resources(ComputeSettings(workers=8, min_workers=3), ClusterSettings())
    with pytest.raises(
        UserError, match=r"no alive node of this Ray is labelled pool=gpu \(cluster.training_nodes\): .*--labels pool=gpu`"
    ):
        train_on_ray(job(tmp_path), cluster=ClusterSettings(training_nodes="pool=gpu"))
    check_resources(ComputeSettings(workers=8, min_workers=2), ClusterSettings())
    here = f"ray.io/node-id={ray.get_runtime_context().get_node_id()}"
    check_resources(ComputeSettings(), ClusterSettings(training_nodes=here))
    assert not logged.messages


@pytest.mark.ray
@pytest.mark.slow
def test_fcn8s_trains_on_images_and_a_diverging_loss_ends_the_run_at_once(tmp_path: Path, ray_session):
    table = images_table(f"{tmp_path}/images", 12)
    options = {"stage": "fcn8s", "examples_uri": table, "dev_uri": table}
    found = train_on_ray(job(tmp_path, **options, settings=stage(batch=4, max_steps=3, bn_batches=0)))
    assert found["steps"] == 3
    assert checkpoint.load_model(f"{tmp_path}/model")[0].architecture == "fcn8s"
    with pytest.raises(UserError, match=r"fcn8s: the loss is .*lower lr"):
        train_on_ray(job(tmp_path, **options, run_name="wild", settings=stage(batch=4, lr=1e30)))


@pytest.mark.slow  # by day, two workers of Ray train in test_local_executor.py, and test_trainer_ranks.py compares losses
@pytest.mark.ray
def test_elastic_workers_resume_a_local_run_survive_a_death_and_are_resumed_locally(tmp_path: Path, ray_session, logged):
    """With the losses of an undisturbed run. The workers reserve every CPU.

    Weights are not compared: so small a network amplifies rounding, by which one worker and two differ (test_trainer_ranks.py).

    At most a checkpoint interval (2 steps), and the steps while the checkpoint was written, are repeated.
    """
    examples_table(f"{tmp_path}/examples", 60)
    settings = stage(max_steps=40, checkpoint_every=2)  # so many that no part ends before it is asked to stop
    compute = ComputeSettings(threads=1, bf16=False)
    this = job(tmp_path, compute=compute, settings=settings)
    whole_job = job(tmp_path, compute=compute, settings=settings, run_name="whole", out_uri=f"{tmp_path}/whole")
    before: list[psutil.Process] = []
    after: list[psutil.Process] = []
    killed = 0  # number of messages until the death was noticed

    def locally(job: TrainingJob, end: int) -> dict[int, float]:
        """Train until the step `end` was logged, or the run is over, and return the logged losses."""
        logged.clear()
        if end == settings.max_steps:
            assert train_locally(job)["steps"] == end
        else:
            with pytest.raises(Interrupted, match="the same command resumes it"):
                train_locally(job, should_stop=lambda: max(losses(logged.messages), default=0) >= end)
        return losses(logged.messages)

    def watch() -> bool:
        """Kill a worker after three steps, and stop the training when it goes on after the death."""
        nonlocal killed
        if not before and max(losses(logged.messages), default=0) >= max(first) + 3:
            before.extend(processes_below(os.getpid(), "RayTrainWorker"))
            assert len(before) == 2
            # they keep freed memory: infra/memory.py
            assert all(worker.environ()["MALLOC_ARENA_MAX"] == "1" for worker in before)
            before[1].kill()
        if not killed:
            killed = next((i for i, line in enumerate(logged.messages) if "workers failed" in line), 0)
        elif not after and losses(logged.messages[killed:]):
            after.extend(processes_below(os.getpid(), "RayTrainWorker"))
        return bool(after)

    whole = locally(whole_job, 40)
    assert list(whole) == list(range(1, 41))
    first = locally(this, 3)
    logged.clear()
    with pytest.raises(Interrupted, match="the same command resumes it"):
        train_on_ray(replace(this, compute=ComputeSettings(workers=2, min_workers=1, bf16=False)), should_stop=watch)
    assert after and not {p.pid for p in before} & {p.pid for p in after}
    lost, on_ray = logged.messages[:killed], logged.messages[killed:]
    rest = locally(this, 40)

    done, again = reported_steps(lost), reported_steps(on_ray)
    assert 3 <= max(first) < max(first) + 3 <= done[-1]
    assert done == list(range(max(first) + 1, done[-1] + 1))
    assert again == list(range(again[0], again[-1] + 1))
    assert -1 <= done[-1] - (again[0] - 1) <= 2 + WHILE_WRITTEN  # -1: the last step's report was lost with its worker
    assert list(rest) == list(range(again[-1] + 1, 41))
    for part in (first, losses(lost), losses(on_ray), rest):
        assert part == pytest.approx({step: whole[step] for step in part}, abs=1e-3)
    meta = checkpoint.load_model(f"{tmp_path}/model")[1]
    assert meta["classes"] == list(CLASSES)
    assert meta["extra"]["stage"] == "stage1"


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_says_that_it_waits_for_cpus_that_other_work_takes_and_ends_when_asked_to(
    tmp_path: Path, ray_session, logged, monkeypatch: pytest.MonkeyPatch
):
    """The controller of the training ends with it, or it would begin when the CPUs are free."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    examples_table(f"{tmp_path}/examples", 60)
    other = ray.remote(ReportQueue).options(num_cpus=1).remote()
    waits = "  workers: none yet; waiting for free resources for 2 training workers of 1 CPU each"
    with pytest.raises(Interrupted, match="while waiting for resources for the workers: the same command resumes"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=2)), should_stop=lambda: waits in logged.messages)
    assert logged.messages.count(waits) == 1 and not any("stopping" in message for message in logged.messages)
    wait_until(lambda: not processes_below(os.getpid(), "TrainController"), seconds=60)
    ray.kill(other)
