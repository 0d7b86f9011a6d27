"""When VGG-16 is fitted to a network, and which stages use it."""

import pytest

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
