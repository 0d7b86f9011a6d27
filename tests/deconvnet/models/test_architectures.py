"""What the two architectures are built from and trained on."""

import inspect
import subprocess
import sys

import pytest
import torch

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.architectures import ARCHITECTURES, DECONVNET, FCN8S, Architecture, architecture_of_stage
from deconvnet.models.factory import build_network
from deconvnet.settings import ModelSettings, TrainSettings
from tests.conftest import ROOT

SMALL = ModelSettings(
    width=0.125, input_size=32, fcn_width=0.25, fcn_batch_norm=True, fcn_input_size=64, convention="torchvision"
)


@pytest.mark.parametrize(("architecture", "network"), [(DECONVNET, DeconvNet), (FCN8S, FCN8s)])
def test_a_network_is_built_from_the_settings_of_its_architecture(architecture: Architecture, network: type):
    assert architecture.network_class() is network and network.architecture == architecture.name
    model = build_network(architecture, SMALL, 4)
    assert isinstance(model, network)
    assert model.config() == {"num_classes": 4, **architecture.constructor_arguments(SMALL)}
    arguments = inspect.signature(network).parameters.keys() - {"num_classes"}
    assert architecture.arguments.keys() == arguments, "an argument of the constructor has no setting"


def test_fcn8s_is_as_wide_as_deconvnet_unless_the_settings_say_otherwise():
    assert FCN8S.width(SMALL) == 0.25
    assert FCN8S.width(SMALL.model_copy(update={"fcn_width": None})) == 0.125


def test_a_network_does_not_depend_on_the_settings_of_the_other():
    other = SMALL.model_copy(update={"fcn_width": 0.5, "fcn_input_size": 96, "fcn_batch_norm": False})
    assert DECONVNET.settings_used(SMALL) == DECONVNET.settings_used(other)
    other = SMALL.model_copy(update={"width": 0.5, "input_size": 96, "decoder_init": "interpolation"})
    assert FCN8S.settings_used(SMALL) == FCN8S.settings_used(other)
    together = DECONVNET.settings_used(SMALL).keys() | FCN8S.settings_used(SMALL).keys()
    assert {name.removeprefix("fcn_") for name in ModelSettings.model_fields} == together


def test_every_training_stage_has_an_architecture():
    assert {stage: architecture_of_stage(stage).name for stage in TrainSettings.model_fields} == {
        "fcn8s": "fcn8s",
        "stage1": "deconvnet",
        "stage2": "deconvnet",
    }


@pytest.mark.parametrize("stage", ["stage3", "", "deconvnet"])
def test_an_unknown_training_stage_is_named(stage):
    with pytest.raises(ValueError, match=f"no training stage '{stage}'; the stages are .*stage1, stage2"):
        architecture_of_stage(stage)


@pytest.mark.parametrize("size", [0, -1, 31])
def test_an_image_size_of_fcn8s_that_is_too_small_is_refused(size):
    with pytest.raises(ValueError, match=f"input_size is {size}"):
        FCN8s(3, 0.05, input_size=size)


def test_networks_that_are_narrower_than_vgg16_or_have_batch_norm_need_fitted_weights():
    weights = {"vgg16": "vgg16.npz"}
    assert DECONVNET.needs_fitted_vgg16(ModelSettings(width=0.5, **weights))
    assert DECONVNET.needs_fitted_vgg16(ModelSettings(width=1.0, **weights))
    assert not DECONVNET.needs_fitted_vgg16(ModelSettings(width=0.5))
    assert [FCN8S.needs_fitted_vgg16(ModelSettings(width=0.5, fcn_width=w, **weights)) for w in (None, 1.0)] == [True, False]
    assert FCN8S.needs_fitted_vgg16(ModelSettings(width=0.5, fcn_width=1.0, fcn_batch_norm=True, **weights))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DeconvNet(5, 0.125, 64, convention="torchvision", encoder_width=0.25, fc_channels=8),
        lambda: FCN8s(3, 0.25, True, "torchvision"),
    ],
    ids=["deconvnet", "fcn8s"],
)
def test_config_builds_the_network_again(make):
    net = make()
    again = type(net)(**net.config())
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.config() == net.config()
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    assert again.prepare(images).abs().max() < 3  # torchvision's convention, not 0–255


def test_architectures_are_known_without_importing_torch():
    code = "import sys, deconvnet.models.architectures; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert set(ARCHITECTURES) == {"deconvnet", "fcn8s"}
