"""A training stage on Ray Train: DDP over N workers (NCCL on GPUs, gloo on CPUs), each fed by its shard of a Ray Data feed.

When a worker or its node dies, Ray Train starts all of them again from the last checkpoint: as many as before or, with
`compute.min_workers`, as many as there is room for. The driver checks everything, starts the run and waits: it prints what the workers report and, when it is interrupted (Ctrl-C,
SIGTERM, `ray job stop`), asks them to stop; they leave a checkpoint. A run of the same name and storage goes on from its last one.
"""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from deconvnet.models import checkpoint
from deconvnet.models.factory import build_network, initialise
from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training.curves import progress
from deconvnet.training.dataloader import DevSet, Examples, Feed, open_examples, ray_data_config
from deconvnet.training.elastic import Elastic, FreshStart
from deconvnet.training.report_queue import Relay
from deconvnet.training.sampler import check_batching
from deconvnet.training.trainer import Diverged, Outcome, State, place, train
from infra import storage
from infra.errors import Interrupted, UserError, find_user_error
from infra.runtime.cluster import check_nodes, live_nodes, may_grow, room
from infra.runtime.device import fast_bf16

POLL_SECONDS = 0.2
"""How often the controller looks at its workers and the driver at the relay; Ray's 2 s would be waited for at every report."""
PLACE_SECONDS = 20
"""How long elastic workers wait for the places they were promised, before it is looked how many there are now."""
COLLECTIVE_SECONDS = 600
"""How long a worker waits for the others in a collective operation: longer than a checkpoint is written."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    architecture: str
    model: ModelSettings
    settings: StageSettings
    compute: ComputeSettings
    classes: tuple[str, ...]
    dev: Examples | None
    seed: int
    init: str | None
    out_uri: str
    name: str


def run_training(
    *,
    stage: str,
    architecture: str,
    model_settings: ModelSettings,
    stage_settings: StageSettings,
    compute: ComputeSettings,
    examples_uri: str,
    dev_uri: str | None,
    classes: Sequence[str],
    storage_uri: str,
    run_name: str,
    out_uri: str,
    seed: int,
    init: str | None = None,
    nodes: Mapping[str, str] | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    say: Say = print,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train one stage to its end and leave the network as a model folder at `out_uri`. Ray must be running.

    stage: "fcn8s", "stage1" or "stage2", which names the settings' section. examples_uri: an `examples` table, or the `images` table
    for "fcn8s", whose splits `train` and `dev` are used; dev_uri: an `examples` table of dev crops (for "fcn8s" the same `images`
    table), or None. storage_uri/run_name: where checkpoints lie; a run that stands there is gone on with. init: a model folder to
    start from. nodes: Ray labels of the nodes that workers may run on; None or {} for any. callbacks: Ray Train callbacks, called in
    the controller; they must not raise. stopped: where it comes to say yes, the run is stopped as by an interruption.

    Returns {"steps", "epochs", "dev_mean_iou", "best_dev_mean_iou"}. Raises UserError for settings or data that can't be trained
    with and where the loss diverges, and Interrupted where it was asked to stop (a checkpoint is left then).
    """
    check_batching(
        stage_settings.batch, stage_settings.micro_batch, compute.workers, compute.min_workers, setting=f"train.{stage}"
    )
    check_resources(compute, say, nodes)
    whole = architecture == "fcn8s"
    size = model_settings.fcn_input_size if whole else model_settings.input_size
    examples = open_examples(examples_uri, size, "train" if whole else None, stage_settings.scale_jitter if whole else 0.0)
    dev = _open_dev(dev_uri, size, whole)
    feed = Feed.of(examples, stage_settings.batch, compute.workers, seed)
    job = Job(
        architecture, model_settings, stage_settings, compute, tuple(classes), dev, seed, init, storage.absolute(out_uri), stage
    )
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    if len(ray.nodes()) == 1:  # the driver's own node: nobody would be left to see it go
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if compute.min_workers is not None:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_SECONDS))
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # elsewhere it could die with its node
    relay = ray.remote(Relay).options(num_cpus=0, label_selector=here).remote()
    filesystem, path = storage.filesystem(storage.absolute(storage_uri))
    trainer = _Trainer(
        relay,
        _work,
        train_loop_config={"job": job, "relay": relay},
        # CPU tensors (counts, the stop flag) are summed by gloo in any case, so that they don't wait for the GPU.
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if compute.gpu else "gloo", timeout_s=COLLECTIVE_SECONDS
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers if compute.min_workers is None else (compute.min_workers, compute.workers),
            label_selector=dict(nodes) if nodes else None,
            use_gpu=compute.gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if compute.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[Telling(relay), *callbacks],
        ),
        datasets={"train": feed},
        dataset_config=ray_data_config(max(1, compute.cpus_per_worker - 1)),
    )
    total = min(stage_settings.epochs * feed.steps_per_epoch, stage_settings.max_steps or 2**62)
    say(
        f"{stage}: {examples.total:,} examples an epoch, {feed.steps_per_epoch:,} steps of {stage_settings.batch}, at most {total:,} steps"
    )
    try:
        found = _wait(trainer, relay, storage_uri, lambda metrics: say(f"{stage}: {progress(metrics, total)}"), say, stopped)
    finally:
        ray.kill(relay)
    if found.get("interrupted"):
        raise Interrupted(f"{stage} was interrupted and has left a checkpoint: the same command goes on from it")
    if "diverged" in found:
        raise Diverged(f"{stage}: {found['diverged']}")
    return found


def check_resources(compute: ComputeSettings, say: Say, nodes: Mapping[str, str] | None = None) -> None:
    """Raise UserError where this Ray will never have what the fewest workers reserve; say so where it may still grow.

    nodes: Ray labels of the nodes that workers may run on; None or {} for any.
    """
    workers = compute.min_workers or compute.workers
    fits = room(nodes or {}, compute.cpus_per_worker, 1 if compute.gpu else 0)
    if fits >= workers:
        return
    check_nodes(nodes or {}, "cluster.training_nodes")
    each = f"{compute.cpus_per_worker} CPU{'s' * (compute.cpus_per_worker > 1)}" + (" and a GPU" if compute.gpu else "")
    what = f"room for {workers} training workers of {each} each (Ray has it for {fits})"
    if not may_grow() and len(live_nodes()) == 1:
        raise UserError(
            f"compute asks for {what}: lower compute.workers or compute.cpus_per_worker"
            + (", or set compute.gpu to false" if compute.gpu else "")
        )
    say(f"waiting for {what}")


class _Trainer(ray.train.torch.TorchTrainer):
    """With `Elastic` where the number of workers may change, and without the detached actor that frees the workers' places after a
    dead controller: Ray does that when the driver ends, and the actor asks the dashboard every second, which a Ray started for one
    run doesn't have."""

    def __init__(self, relay: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._relay = relay

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = Elastic(self.scaling_config, self._relay)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        usual = super()._create_default_callbacks()
        return [FreshStart(), *(c for c in usual if not isinstance(c, PlacementGroupCleanerCallback))]


class Telling(ray.train.UserCallback):
    """Sends rank 0's reports and failures to the relay, and never raises: Ray would retry it without end."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller after every `ray.train.report`."""
        self._relay.tell.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller when workers failed."""
        reasons = {
            rank: str(error).strip().splitlines()[-1][:200] for rank, error in worker_exceptions.items() if str(error).strip()
        }
        self._relay.tell.remote({"failed": reasons})


def _open_dev(uri: str | None, size: int, whole: bool) -> Examples | None:
    """The dev examples, or None where there are none (a table may be empty)."""
    if uri is None:
        return None
    try:
        return open_examples(uri, size, "dev" if whole else None)
    except UserError:
        return None


def _wait(
    trainer: Any, relay: Any, storage_uri: str, tell: Callable[[dict[str, Any]], None], say: Say, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Run the trainer in a thread (in the main one it would take Ctrl-C to itself) and return what rank 0 returned."""
    ended: dict[str, Any] = {}
    workers: int | None = None

    def fit() -> None:
        try:
            ended["value"] = trainer.fit().return_value
        except BaseException as error:
            ended["error"] = error

    def hear() -> None:
        nonlocal workers
        for message in ray.get(relay.told.remote()):
            if "failed" in message:
                why = "; ".join(f"worker {rank}: {reason}" for rank, reason in message["failed"].items())
                say(f"workers failed ({why}); Ray Train starts them again from the last checkpoint, or gives up")
            elif "workers" in message:
                workers = message["workers"]
                say(f"workers: {workers or 'none yet; waiting for nodes to train on'}")
            else:
                tell(message)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with _signals() as caught:
        thread.start()
        asked = False
        while thread.is_alive():
            if (caught or stopped()) and not asked:
                say("stopping: the workers finish their step and leave a checkpoint (again to stop at once)")
                relay.stop.remote()
                asked = True
            if asked and workers == 0:
                raise Interrupted("interrupted while it waited for nodes: the same command goes on from the last checkpoint")
            if len(caught) > 1:
                raise KeyboardInterrupt
            hear()
            thread.join(POLL_SECONDS)
        hear()
    if "error" in ended:
        raise _sentence(ended["error"], storage_uri) from ended["error"]
    return dict(ended["value"])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """For the time of a block SIGINT and SIGTERM are only noted in the list that is yielded."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, lambda s, _: caught.append(s)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(error: BaseException, storage_uri: str) -> BaseException:
    """The user's mistake that made the workers or the controller fail, or the full disk, if that was it; else the error itself."""
    for failure in (*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", error)):
        cause = getattr(failure, "_base_exc", failure)
        if user_error := find_user_error(cause):
            return user_error
        if storage.is_full(cause):  # with S3 the disk is the one on which checkpoints are put together
            return storage.disk_user_error(cause, tempfile.gettempdir() if storage.is_s3(storage_uri) else storage_uri) or error
    return error


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker does; rank 0 keeps checkpoints and the finished model."""
    job: Job = config["job"]
    _quiet()
    rank, _ = place()
    torch.set_num_threads(job.compute.threads or job.compute.cpus_per_worker)
    torch.manual_seed(job.seed)
    model = build_network(job.architecture, job.model, len(job.classes))
    latest = ray.train.get_checkpoint()
    state = None
    if latest is not None:
        with latest.as_directory() as folder:
            state = State(*checkpoint.load_state(folder))
    elif rank == 0:  # DDP gives rank 0's weights to all
        initialise(model, job.model, job.classes, job.init)
    stopping = Stopping(config["relay"]) if rank == 0 else lambda: False

    def report(metrics: dict[str, float], state: State | None) -> None:
        if rank or state is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save_state(folder, state.tensors, state.values)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    world = ray.train.get_context().get_world_size()
    try:
        outcome: Outcome = train(
            model,
            ray.train.get_dataset_shard("train"),
            job.settings,
            num_classes=len(job.classes),
            seed=job.seed,
            dev=DevSet(job.dev, rank, world) if job.dev else None,
            device=(device := ray.train.torch.get_device()),
            bf16=job.compute.bf16 and fast_bf16(device),
            state=state,
            report=report,
            should_stop=stopping,
        )
    except Interrupted:
        return {"interrupted": True}
    except Diverged as error:  # starting again would only repeat it
        return {"diverged": str(error)}
    if rank == 0:
        checkpoint.save_model(model, job.out_uri, job.classes, {"stage": job.name, "seed": job.seed, **asdict(outcome)})
    return asdict(outcome)


def _quiet() -> None:
    """Ray's lines about every report and every execution of a data set are kept out of the worker's output."""
    for library in ("", "ray.train", "ray.data"):  # some of Ray's loggers have no library's name
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(
        logging.ERROR
    )  # warns that progress bars are off, as they should be


class Stopping:
    """Whether the relay was asked to stop, as of its last answer; asking never waits."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._stopped = False
        self._answer = relay.stopped.remote()

    def __call__(self) -> bool:
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready and not self._stopped:
            try:
                self._stopped = bool(ray.get(self._answer))
            except ray.exceptions.RayError:  # the driver has gone; Ray ends the job
                return False
            self._answer = self._relay.stopped.remote()
        return self._stopped
