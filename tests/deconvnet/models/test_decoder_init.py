"""What networks start from: the decoder initialised as interpolation, and what the settings choose."""

import pytest
import torch

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.architectures import DECONVNET, FCN8S
from deconvnet.models.checkpoint import save_model
from deconvnet.models.factory import build_network, initialise
from deconvnet.models.init_weights.decoder import BOX_SHARE, NORM_BIAS, interpolate
from deconvnet.models.init_weights.vgg16 import write_vgg16
from deconvnet.models.layers import VGG16_CONVOLUTIONS
from deconvnet.settings import ModelSettings

CLASSES = ("background", "a", "b", "c", "d")


def started() -> DeconvNet:
    torch.manual_seed(0)
    model = DeconvNet(5, 0.25, 64)
    interpolate(model)
    return model


@pytest.fixture(scope="module")
def model() -> DeconvNet:
    """A network that the tests only read."""
    return started()


def deconvolutions(model: DeconvNet):
    return [unit for number in (5, 4, 3, 2, 1) for unit in model.get_submodule(f"deconv{number}")]


def test_every_output_has_hes_norm_and_the_bias_of_batch_norm(model):
    for unit in deconvolutions(model):
        squared = unit.conv.weight.square().sum((0, 2, 3))
        assert squared.mean().item() == pytest.approx(2, rel=0.1)
        assert (unit.norm.bias == NORM_BIAS).all() and (unit.conv.bias == 0).all()


def test_a_channel_is_spread_over_its_neighbours_more_than_any_other(model):
    for unit in deconvolutions(model):
        weight = unit.conv.weight
        inputs, outputs = weight.shape[:2]
        sums = weight.sum((2, 3))  # a box filter adds up, noise cancels
        own = torch.stack([sums[channel, channel % outputs] for channel in range(inputs)])
        box = 9 * (BOX_SHARE * 2 / (9 * inputs / outputs)) ** 0.5
        assert own.mean().item() == pytest.approx(box, rel=0.1)
        assert sums.abs().argmax(1).eq(torch.arange(inputs) % outputs).float().mean() > 0.9


def test_a_seed_gives_the_same_weights(model):
    second = started().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in model.state_dict().items())


def share_of_codes(model: DeconvNet) -> float:
    """Share of the variance of the score's input that four of fc7's outputs explain, with the switches of eight images."""
    generator = torch.Generator().manual_seed(1)
    seen: dict[str, torch.Tensor] = {}
    model.fc7.register_forward_hook(
        lambda module, inputs, out: torch.randn(4, *out.shape[1:], generator=generator).repeat(8, 1, 1, 1)
    )
    model.score.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        model(60 * torch.randn(8, 3, 64, 64, generator=generator).repeat_interleave(4, 0))
    x = seen["x"].unflatten(0, (8, 4))  # images, codes
    return (x.mean(0).var(0).mean() / x.flatten(0, 1).var(0).mean()).item()


def test_class_information_reaches_the_score():
    torch.manual_seed(0)
    assert share_of_codes(started()) > 3 * share_of_codes(DeconvNet(5, 0.25, 64))


def test_only_an_untrained_deconvnet_is_initialised_so(tmp_path):
    settings = ModelSettings(width=0.0625, fcn_width=0.0625, input_size=64, decoder_init="interpolation")
    fcn = build_network(FCN8S, settings, 5)
    before = {name: value.clone() for name, value in fcn.state_dict().items()}
    initialise(fcn, settings, CLASSES, None)
    assert isinstance(fcn, FCN8s) and all(torch.equal(value, before[name]) for name, value in fcn.state_dict().items())
    trained = DeconvNet(5, 0.0625, 64)
    save_model(trained, str(tmp_path / "model"), CLASSES)
    model = build_network(DECONVNET, settings, 5)
    initialise(model, settings, CLASSES, str(tmp_path / "model"))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", [DECONVNET, FCN8S])
@pytest.mark.parametrize("decoder_init", ["gaussian", "interpolation"])
def test_the_settings_choose_vgg16_s_weights_and_the_decoder_s_initialisation(tmp_path, architecture, decoder_init):
    file = str(tmp_path / "vgg16.npz")
    settings = ModelSettings(width=0.0625, fcn_width=0.0625, input_size=64, decoder_init=decoder_init, vgg16=file)
    model, source = (build_network(architecture, settings, 5) for _ in range(2))
    names = {name: f"{name.replace('_', '.')}.conv.weight" for name in VGG16_CONVOLUTIONS}
    weights = {name: source.state_dict()[key] for name, key in names.items()}
    tensors = {
        f"{name}.{part}": v for name, weight in weights.items() for part, v in (("weight", weight), ("bias", weight[:, 0, 0, 0]))
    }
    write_vgg16(file, tensors, settings.convention)
    initialise(model, settings, CLASSES, None)
    assert all(torch.equal(model.state_dict()[key], weights[name]) for name, key in names.items())
    if isinstance(model, DeconvNet):
        assert {bool((unit.norm.bias == NORM_BIAS).all()) for unit in deconvolutions(model)} == {decoder_init == "interpolation"}
