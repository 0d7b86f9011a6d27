"""When VGG-16 is fitted to a network, and which stages use it; and from which registered model the trainings of a run start."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from mlflow import MlflowClient

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.checkpoint import save_model
from deconvnet.tracking import starting_model
from deconvnet.training import local_trainer
from deconvnet.training.job import TrainingJob
from infra import storage
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


def test_fitted_weights_are_made_again_only_for_settings_that_change_them(settings):
    def recipes(text: str) -> dict[str, str]:
        return {stage.name: stage.recipe for stage in Pipeline(settings(text)).stages.stages}

    before = recipes("model: {width: 0.25, fcn_width: 0.125, vgg16: VGG}")
    wider = recipes("model: {width: 0.5, fcn_width: 0.125, vgg16: VGG}")
    assert before["fcn8s_start"] == wider["fcn8s_start"]
    assert before["stage1_start"] != wider["stage1_start"]
    encoder = recipes("model: {width: 0.25, encoder_width: 0.5, fcn_width: 0.125, vgg16: VGG}")
    assert wider["stage1_start"] == encoder["stage1_start"] != before["stage1_start"]
    assert encoder["stage1"] != wider["stage1"]
    seeded = recipes("seed: 1\nmodel: {width: 0.25, fcn_width: 0.125, vgg16: VGG}")
    assert before["fcn8s_start"] != seeded["fcn8s_start"]
    trained = recipes("model: {width: 0.25, fcn_width: 0.125, vgg16: VGG}\ntrain: {stage1: {lr: 0.5}}")
    assert before["stage1_start"] == trained["stage1_start"]


@pytest.mark.parametrize("gpu", ["true", "false"])
def test_trainings_are_run_again_for_other_arithmetic(settings, gpu):
    """On CPUs as well: they train in bfloat16 where they are fast at it."""

    def recipes(bf16: str) -> dict[str, str]:
        made = Pipeline(settings(f"compute: {{gpu: {gpu}, bf16: {bf16}}}")).stages.stages
        return {stage.name: stage.recipe for stage in made}

    one, other = recipes("true"), recipes("false")
    assert [name for name in one if one[name] != other[name]] == ["fcn8s", "stage1", "stage2"]


class Called(Exception):
    """Ends a training before it begins."""


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

    monkeypatch.setattr(starting_model, "fetch", fetch)
    monkeypatch.setattr(local_trainer, "train_locally", train)
    client.set_registered_model_alias("net", "champion", str(one))
    pipeline = Pipeline(settings(f"executor: local\ninit: {{from: models:/net@champion}}\ntracking: {{uri: '{store}'}}"))
    for name in ("fcn8s", "stage1"):
        client.set_registered_model_alias("net", "champion", str(two))
        with pytest.raises(Called):
            pipeline._train(name, "f" * 64)
    assert [Path(start or "").parent.name.rpartition("-")[0] for start in starts] == ["net-1", "net-1"]
    stages = {stage.name: stage.settings.get("init_weights") for stage in pipeline.stages.stages}
    assert {stages[name] for name in ("fcn8s", "stage1", "stage2")} == {"models:/net@champion version 1"}
