"""When VGG-16 is fitted to a network, and which stages use it; and from which registered model the trainings of a run start."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from mlflow import MlflowClient

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.checkpoint import save_model
from deconvnet.tracking import initial_model, registry
from deconvnet.training import channel_pruning_job, local_trainer
from deconvnet.training.channel_pruning_job import PruningJob
from deconvnet.training.job import TrainingJob
from infra import storage
from infra.errors import UserError
from workflows import evaluate
from workflows.pipelines import init_weights
from workflows.pipelines.init_weights import fitted_weights_uri
from workflows.pipelines.training import Pipeline
from workflows.settings import load


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "vgg.npz").touch()

    def made(text: str):
        config = tmp_path / "c.yaml"
        config.write_text(f"workspace: {tmp_path}/w\n" + text.replace("VGG", str(tmp_path / "vgg.npz")))
        return load(str(config))

    return made


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("model: {width: 0.25, fcn_width: 0.125, vgg16: VGG}", ["fcn8s", "stage1"]),
        ("model: {width: 0.25, vgg16: VGG}", ["fcn8s", "stage1"]),
        ("model: {width: 0.25, fcn_width: 1, vgg16: VGG}", ["stage1"]),
        ("model: {width: 0.25, encoder_width: 1, fcn_width: 1, vgg16: VGG}", ["stage1"]),
        ("model: {width: 1, vgg16: VGG}", ["stage1"]),
        ("model: {width: 1, vgg16: VGG, fcn_batch_norm: true}", ["fcn8s", "stage1"]),
        ("model: {width: 0.25}", []),
    ],
)
def test_networks_that_are_narrower_than_vgg16_or_have_batch_norm_fit_it(settings, text, made):
    s = settings(text)
    assert [stage for stage in ("fcn8s", "stage1", "stage2") if fitted_weights_uri(s, stage)] == made
    stages = {stage.name: stage for stage in Pipeline(s).stages.stages}
    assert [name for name in stages if name.endswith("_start")] == [f"{stage}_start" for stage in made]
    for name in ("fcn8s", "stage1", "stage2"):
        assert (f"{name}_start" in stages[name].inputs) == (name in made)
    for name in made:
        assert stages[f"{name}_start"].outputs == (storage.join(s.workspace, "start", f"{name}.npz"),)


def test_vgg16_is_fitted_anew_only_where_the_encoder_is_wider(settings):
    """By the width of the whole network, or by that of the encoder alone: the fitted weights are the same."""

    def recipes(text: str) -> dict[str, str]:
        return {stage.name: stage.recipe for stage in Pipeline(settings(text)).stages.stages}

    before = recipes("model: {width: 0.25, fcn_width: 0.125, vgg16: VGG}")
    wider = recipes("model: {width: 0.5, fcn_width: 0.125, vgg16: VGG}")
    encoder = recipes("model: {width: 0.25, encoder_width: 0.5, fcn_width: 0.125, vgg16: VGG}")
    assert wider["stage1_start"] == encoder["stage1_start"] != before["stage1_start"]
    assert encoder["stage1"] != wider["stage1"]


class Called(Exception):
    """Ends a training before it begins."""


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("executor: local\ncompute: {cpus_per_worker: 2}", 5),
        ("executor: local\ncompute: {cpus_per_worker: 2, threads: 3}", 3),
        ("executor: ray\ncompute: {cpus_per_worker: 2}", 2),
    ],
)
def test_vgg16_is_fitted_with_the_threads_of_a_training(settings, text: str, threads: int, monkeypatch: pytest.MonkeyPatch):
    given: list[PruningJob] = []

    def prune_on(executor: object, job: PruningJob) -> NoReturn:
        given.append(job)
        raise Called

    monkeypatch.setattr(channel_pruning_job, "prune_on", prune_on)
    monkeypatch.setattr(init_weights, "available_cpus", lambda: 5)
    monkeypatch.setattr(Pipeline, "_training_table", lambda *_: "table")
    stages = {stage.name: stage for stage in Pipeline(settings(f"{text}\nmodel: {{width: 0.25, vgg16: VGG}}")).stages.stages}
    with pytest.raises(Called):
        stages["stage1_start"].run("f" * 64)
    assert [(job.threads, job.cpus) for job in given] == [(threads, 2)]


FROZEN = "train: {fcn8s: {freeze: [conv1]}, stage1: {freeze: [conv1, conv2]}, stage2: {freeze: [conv1]}}"
WINDOWS = "proposals: {kind: windows}\nsegment: {aggregation: mean, early_exit: null}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (FROZEN, "train.fcn8s.freeze and train.stage1.freeze"),
        (f"{FROZEN}\n{WINDOWS}", "train.fcn8s.freeze and train.stage2.freeze"),
        ("train: {stage1: {freeze: [conv3]}}", "train.stage1.freeze"),
        ("train: {stage2: {freeze: [conv3]}}", None),  # it starts from stage 1
        (f"{FROZEN}\nmodel: {{vgg16: VGG}}", None),
        (f"{FROZEN}\ninit: {{from: TRAINED}}", "train.fcn8s.freeze"),  # it holds a DeconvNet alone
        ("train: {stage1: {freeze: [conv1]}}\ninit: {from: TRAINED}", None),
    ],
)
def test_random_weights_are_not_frozen(settings, text: str, names: str | None, tmp_path: Path):
    """The options that the message names let the training begin. Commands that train nothing are not refused."""
    save_model(DeconvNet(2, 0.02, 32), str(tmp_path / "trained"), ["background", "a"])
    pipeline = Pipeline(settings("executor: local\n" + text.replace("TRAINED", str(tmp_path / "trained"))))
    if names is None:
        pipeline._check_start()
        return
    with pytest.raises(
        UserError, match=f"^{re.escape(names)} would keep random weights, as neither model.vgg16 nor init.from"
    ) as no:
        pipeline._check_start()
    options = shlex.split(re.search(r": give (.*), or name weights$", str(no.value))[1])
    Pipeline(load(str(tmp_path / "c.yaml"), *options))._check_start()


def test_a_gpu_that_is_not_there_is_a_user_error_before_any_stage_runs(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipeline = Pipeline(settings("executor: local\ncompute: {gpu: true}\ntracking: {enabled: false}"))
    with pytest.raises(
        UserError, match=r"^compute\.gpu is true, and this machine has no GPU that torch can use: set it to false$"
    ):
        pipeline.run("c")
    assert not (tmp_path / "w" / "images").exists()
    with pytest.raises(UserError, match=r"^compute\.gpu is true"):
        evaluate.main(["--config", str(tmp_path / "c.yaml")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pipeline._check_start()
    with pytest.raises(UserError, match=r"train_pipeline\.py --config .* first$"):
        evaluate.main(["--config", str(tmp_path / "c.yaml")])


def test_all_trainings_of_a_run_start_from_one_version_although_its_alias_is_moved(
    settings, make_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "w")
    client = MlflowClient(store, store)
    client.create_registered_model("net")
    one, two = (client.create_model_version("net", "file:///model").version for _ in range(2))
    starts: list[str | None] = []

    def fetch(version: object, tracking_uri: str, target: str) -> None:
        for name, network in (("deconvnet", DeconvNet(2, 0.02, 32)), ("fcn8s", FCN8s(2, 0.02))):
            save_model(network, storage.join(target, name), ["background", "a"])

    def train(job: TrainingJob, **_: object) -> NoReturn:
        starts.append(job.init)
        raise Called

    monkeypatch.setattr(initial_model, "fetch", fetch)
    monkeypatch.setattr(local_trainer, "train_locally", train)
    client.set_registered_model_alias("net", "champion", str(one))
    pipeline = Pipeline(settings(f"executor: local\ninit: {{from: models:/net@champion}}\ntracking: {{uri: '{store}'}}"))
    for name in ("fcn8s", "stage1"):
        client.set_registered_model_alias("net", "champion", str(two))
        with pytest.raises(Called):
            pipeline._train(name, "f" * 64)
    assert [Path(start or "").parent.name.rpartition("-")[0] for start in starts] == ["net-1", "net-1"]
    stages = {stage.name: stage.settings.get("init_weights") for stage in pipeline.stages.stages}
    expected = f"net version 1 (id {registry.find('models:/net/1', store, 'model').id})"
    assert {stages[name] for name in ("fcn8s", "stage1", "stage2")} == {expected}
