"""VGG-16 pruned: what a redundant network loses, which channels are kept, the file, and what is refused."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.init_weights import channel_pruning
from deconvnet.models.init_weights.channel_pruning import prune_vgg16, r_squared, regress, select_channels
from deconvnet.models.init_weights.vgg16 import load_vgg16, read_vgg16, write_vgg16
from deconvnet.models.layers import VGG16_CHANNELS, VGG16_CONVOLUTIONS
from deconvnet.models.preprocessing import CONVENTIONS
from deconvnet.settings import ModelSettings
from deconvnet.training import channel_pruning_job
from deconvnet.training.channel_pruning_job import PruningJob, prune, prune_on
from infra.errors import UserError
from tests.deconvnet.training_tables import examples_table, images_table

NAMES = list(VGG16_CONVOLUTIONS)
COPIES = 8  # of each channel in the redundant network


@pytest.fixture(scope="module", autouse=True)
def fewer_samples():
    """Sample fewer positions; use one thread, because several slow each other down on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_pruning, "SAMPLES", 2000)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def redundant():
    """A network as wide as the paper's in which channels 8i to 8i + 7 are copies of each other."""
    generator = torch.Generator().manual_seed(0)
    layers, inputs = {}, 3
    for name, outputs in zip(NAMES, (c for block in VGG16_CHANNELS for c in block), strict=True):
        distinct = inputs if inputs == 3 else inputs // COPIES
        weight = torch.randn(outputs // COPIES, distinct, 3, 3, generator=generator) * (2 / (9 * distinct)) ** 0.5
        if inputs != 3:
            weight = weight.repeat_interleave(COPIES, 1) / COPIES
        bias = 0.1 * torch.randn(outputs // COPIES, generator=generator)
        layers[name] = weight.repeat_interleave(COPIES, 0), bias.repeat_interleave(COPIES)
        inputs = outputs
    return layers


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def unlike():
    """A network of random weights without copies of channels."""
    generator = torch.Generator().manual_seed(4)
    layers, inputs = {}, 3
    for name, outputs in zip(NAMES, (c for block in VGG16_CHANNELS for c in block), strict=True):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        layers[name], inputs = (weight, torch.zeros(outputs)), outputs
    return layers


@pytest.fixture(scope="module")
def pruned(redundant, inputs):
    return list(prune_vgg16(redundant, inputs, 1 / COPIES, seed=3))


def run(layers, x):
    """Compute the responses of the last of some layers, given as (weight, bias) by name."""
    for name in NAMES:
        x = F.conv2d(F.max_pool2d(x, 2) if name.endswith("_1") and name != "conv1_1" else x, *layers[name], padding=1).relu()
    return x


def test_a_redundant_network_is_pruned_without_loss(redundant, inputs, pruned):
    assert [layer.name for layer in pruned] == NAMES
    assert min(layer.r2 for layer in pruned) > 0.95
    for layer in pruned:  # one of each set of copies; a channel or two are always 0 after ReLU
        assert len({k // COPIES for k in layer.kept_channels}) > 0.9 * len(layer.kept_channels)
    fresh = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = run({layer.name: (layer.weight, layer.bias) for layer in pruned}, fresh)
    wanted = run(redundant, fresh)[:, list(pruned[-1].kept_channels)]
    # each layer's responses are scaled by one number, which correlation ignores
    assert np.corrcoef(found.flatten(), wanted.flatten())[0, 1] > 0.97


def test_later_layers_correct_the_errors_of_earlier_ones(unlike, inputs):
    """Weights that are only selected from the full network's lose more than those that are regressed."""
    layers = list(prune_vgg16(unlike, inputs[:12], 0.25))
    cut, before = {}, slice(None)
    for layer in layers:
        weight, bias = unlike[layer.name]
        cut[layer.name] = weight[list(layer.kept_channels)][:, before], bias[list(layer.kept_channels)]
        before = list(layer.kept_channels)
    wanted = run(unlike, inputs[-4:])[:, list(layers[-1].kept_channels)]

    def alike(found):
        return np.corrcoef(found.flatten(), wanted.flatten())[0, 1]

    regressed = alike(run({layer.name: (layer.weight, layer.bias) for layer in layers}, inputs[-4:]))
    assert regressed > alike(run(cut, inputs[-4:])) + 0.1


def test_every_layer_s_responses_have_a_mean_square_of_about_1(inputs, pruned):
    x = inputs
    for layer in pruned:
        x = F.max_pool2d(x, 2) if layer.name.endswith("_1") and layer.name != "conv1_1" else x
        x = F.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(x.mean((0, 2, 3)), layer.mean, rtol=1e-3, atol=1e-3)
        x = x.relu()
        assert 0.7 < x.square().mean().sqrt() < 1.4


def test_results_depend_on_the_seed_alone(redundant, inputs):
    one, again, other = (next(prune_vgg16(redundant, inputs[:3], 1 / COPIES, seed)).weight for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_layers_do_not_depend_on_how_many_inputs_are_computed_at_once(redundant, inputs, monkeypatch):
    found = []
    for at_once in (32, 2):
        monkeypatch.setattr(channel_pruning, "_CHUNK", at_once)
        found.append(next(prune_vgg16(redundant, inputs[:4, :, :32, :32], 1 / COPIES)))
    assert found[0].kept_channels == found[1].kept_channels
    for name in ("weight", "bias", "mean", "var"):
        torch.testing.assert_close(*(getattr(layer, name) for layer in found), rtol=1e-3, atol=1e-4)


def test_layers_are_fitted_without_the_inputs_that_are_held_out_and_r2_is_measured_on_these(unlike, inputs):
    """Nine faint grey images, from which nothing is learned about the colours of the tenth."""
    colours = 10 * inputs[:10, :, :16, :16]
    grey = colours[:, :1].expand(-1, 3, -1, -1)
    one, other = (next(prune_vgg16(unlike, torch.cat([grey[:9] / 10, last[9:]]), 0.25)) for last in (grey, colours))
    assert one.kept_channels == other.kept_channels
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-4)
    assert one.r2 > 0.95 and other.r2 < 0.6


def test_channels_that_the_next_layer_hardly_uses_or_that_are_0_after_relu_are_not_kept(unlike, inputs):
    weight, bias = unlike["conv1_2"][0].clone(), torch.zeros(64)
    weight[:, :24] *= 1e-3
    bias[24:48] = -1000
    layers = unlike | {"conv1_1": (unlike["conv1_1"][0], bias), "conv1_2": (weight, unlike["conv1_2"][1])}
    assert next(prune_vgg16(layers, inputs[:3, :, :32, :32], 0.125)).kept_channels[0] >= 48


def test_selected_channels_are_those_of_pivoted_qr():
    from scipy.linalg import qr

    x = torch.randn(500, 12) @ torch.randn(12, 30) + 0.1 * torch.randn(500, 30)
    expected = qr((x - x.mean(0)).double().numpy(), mode="r", pivoting=True)[1]
    assert select_channels(x, 9) == sorted(expected[:9].tolist())
    assert select_channels(torch.zeros(5, 3), 2) == sorted(set(select_channels(torch.zeros(5, 3), 2)))


def test_regression_is_through_relu():
    """Where the target is negative, any negative prediction is right; one plain regression also fits how negative it is."""
    x = torch.randn(4000, 6)
    y = x[:, :1] + x[:, 1:2]
    y = torch.where(y > 0, y, 5 * x[:, 2:3].square() * y)
    after = [r_squared((x @ w.T + b).relu(), y.relu()) for w, b in (regress(x, y, rounds) for rounds in (1, 3, 30))]
    assert after[0] < after[1] < after[2]
    assert after[2] > 0.98
    weight, bias = regress(x, x @ torch.ones(6, 2) + 5)
    torch.testing.assert_close(weight, torch.ones(2, 6), rtol=0.05, atol=0.05)
    assert bias[0] == pytest.approx(5, abs=0.1)


def tensors_of(layers):
    return {name: value for layer in layers for name, value in layer.tensors().items()}


@pytest.mark.parametrize("convention", ["caffe", "torchvision"])
def test_the_file_loads_into_networks_of_its_width(tmp_path, inputs, pruned, convention):
    path = str(tmp_path / "pruned.npz")
    write_vgg16(path, tensors_of(pruned), convention)
    net = DeconvNet(3, 1 / COPIES, 32, convention)
    assert len(load_vgg16(net, path)) == 13
    for training in (False, True):
        x = inputs  # batch norm changes no response, with the statistics of the file or of the batch
        for layer in pruned[:4]:
            unit = net.train(training).get_submodule(layer.name.replace("_", "."))
            x = F.max_pool2d(x, 2) if layer.name == "conv2_1" else x
            expected = F.conv2d(x, layer.weight, layer.bias, padding=1).relu()
            torch.testing.assert_close(unit(x), expected, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(unit.conv.weight.square().sum((1, 2, 3)), torch.full((len(expected[0]),), 2.0))
            x = expected
    plain = FCN8s(3, 1 / COPIES, batch_norm=False, convention=convention)
    load_vgg16(plain, path)
    torch.testing.assert_close(plain.conv5.get_submodule("3.conv").weight, pruned[-1].weight, rtol=1e-3, atol=1e-4)
    other = "caffe" if convention == "torchvision" else "torchvision"
    with pytest.raises(UserError, match=rf"set model\.convention to {convention}"):
        load_vgg16(DeconvNet(3, 1 / COPIES, 32, other), path)


def test_at_width_1_the_weights_stay_and_batch_norm_changes_nothing(tmp_path, unlike, inputs):
    """In training and in evaluation, the network computes what VGG-16 does, apart from a factor per layer."""
    full = {name: (weight, torch.linspace(-0.5, 0.5, len(weight))) for name, (weight, _) in unlike.items()}
    few = inputs[:6, :, :32, :32]
    path = str(tmp_path / "fitted.npz")
    write_vgg16(path, tensors_of(prune_vgg16(full, few, 1)), "caffe")
    net = DeconvNet(3, 0.125, 32, encoder_width=1)
    assert len(load_vgg16(net, path)) == 13
    for training in (False, True):
        ours = theirs = few
        for name in NAMES:
            if name.endswith("_1") and name != "conv1_1":
                ours, theirs = F.max_pool2d(ours, 2), F.max_pool2d(theirs, 2)
            theirs = F.conv2d(theirs, *full[name], padding=1).relu()
            ours = net.train(training).get_submodule(name.replace("_", "."))(ours)
            factor = float((ours.detach() * theirs).sum() / theirs.square().sum())
            torch.testing.assert_close(ours, factor * theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_a_file_of_another_width_is_a_user_error(tmp_path, pruned, width):
    path = str(tmp_path / "pruned.npz")
    write_vgg16(path, tensors_of(pruned), "caffe")
    with torch.device("meta"):
        net = DeconvNet(3, width, 32)
    with pytest.raises(UserError, match=rf"at width 0\.125 \(64 channels in conv5_3\) and the model is of width {width:g} "):
        load_vgg16(net, path)
    with pytest.raises(UserError, match="is not VGG-16 at width 1: its conv1_1"):
        read_vgg16(path, "caffe")


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory, unlike):
    path = str(tmp_path_factory.mktemp("vgg") / "vgg16.npz")
    named = {
        f"{name}.{part}": value for name, both in unlike.items() for part, value in zip(("weight", "bias"), both, strict=True)
    }
    write_vgg16(path, named, "caffe")
    return path


@pytest.mark.parametrize("architecture", ["deconvnet", "fcn8s"])
def test_the_file_of_a_table_loads_into_both_networks(tmp_path, vgg16, architecture):
    table = examples_table(str(tmp_path / "t"), 8) if architecture == "deconvnet" else images_table(str(tmp_path / "t"), 12)
    settings = ModelSettings(width=0.125, fcn_width=0.25, input_size=32, fcn_input_size=64, vgg16=vgg16)
    out = str(tmp_path / "start.npz")
    layers = list(prune(PruningJob(architecture, settings, table, out, 0)))
    assert [name for name, _, _ in layers] == NAMES
    assert layers[1][2].startswith(f"conv1_2: {8 if architecture == 'deconvnet' else 16} of 64 channels kept, R² ")
    net = DeconvNet(3, 0.125, 32) if architecture == "deconvnet" else FCN8s(3, 0.25, batch_norm=True)
    assert len(load_vgg16(net, out)) == 13
    assert next(iter(prune(PruningJob(architecture, settings, table, str(tmp_path / "again.npz"), 0)))) == layers[0]


def test_fc6_and_fc7_are_kept_at_width_1(tmp_path, unlike):
    named = {f"{name}.{part}": v for name, both in unlike.items() for part, v in zip(("weight", "bias"), both, strict=True)}
    fc = {"fc6.weight": torch.randn(16, 512), "fc6.bias": torch.randn(16)}
    vgg16, out = str(tmp_path / "vgg16.npz"), str(tmp_path / "start.npz")
    write_vgg16(vgg16, named | fc, "caffe")
    settings = ModelSettings(width=0.125, encoder_width=1, fc_channels=16, input_size=32, vgg16=vgg16)
    list(prune(PruningJob("deconvnet", settings, examples_table(str(tmp_path / "t"), 4), out, 0)))
    net = DeconvNet(3, 0.125, 32, encoder_width=1, fc_channels=16)
    assert load_vgg16(net, out) == (*NAMES, "fc6")
    torch.testing.assert_close(net.fc6.conv.weight.flatten(1), fc["fc6.weight"])


def test_a_table_of_one_example_is_refused(tmp_path, vgg16):
    table = examples_table(str(tmp_path / "t"), 1, repeats=(1,))
    settings = ModelSettings(width=0.125, input_size=32, vgg16=vgg16)
    with pytest.raises(UserError, match="has too few examples to prune VGG-16: add images"):
        list(prune(PruningJob("deconvnet", settings, table, str(tmp_path / "start.npz"), 0)))


@pytest.mark.parametrize("bf16", [True, False])
def test_large_inputs_are_at_least_two_and_the_arithmetic_is_that_of_the_settings(tmp_path, vgg16, monkeypatch, bf16):
    """On a CPU that is fast at bfloat16. A single input of 1024 px would be larger than the limit of all inputs."""
    given = []

    def prune_vgg16(full, inputs, width, seed, dtype):
        given.append((len(inputs), dtype))
        raise InterruptedError

    monkeypatch.setattr(channel_pruning_job, "prune_vgg16", prune_vgg16)
    monkeypatch.setattr(channel_pruning_job, "fast_bf16", lambda device: True)
    monkeypatch.setattr(channel_pruning_job, "MAX_BYTES", 4 * 32**2 * 8 - 1)
    settings = ModelSettings(width=0.125, input_size=32, vgg16=vgg16)
    job = PruningJob("deconvnet", settings, examples_table(str(tmp_path / "t"), 5), str(tmp_path / "start.npz"), 0, bf16=bf16)
    with pytest.raises(InterruptedError):
        list(prune(job))
    assert given == [(2, torch.bfloat16 if bf16 else torch.float32)]


@pytest.mark.parametrize("convention", ["caffe", "torchvision"])
def test_pixels_are_in_the_format_of_the_settings_and_drawn_by_the_seed(tmp_path, monkeypatch, convention):
    given: list[tuple[torch.Tensor, int]] = []
    read: list[tuple[str, str]] = []
    monkeypatch.setattr(channel_pruning_job, "read_vgg16", lambda *asked: read.append(asked) or {})
    monkeypatch.setattr(
        channel_pruning_job, "prune_vgg16", lambda full, inputs, width, seed, dtype: given.append((inputs, seed)) or ()
    )
    settings = ModelSettings(width=0.125, input_size=32, vgg16="full.npz", convention=convention)
    table, out = examples_table(str(tmp_path / "t"), 4), str(tmp_path / "start.npz")
    for seed in (0, 1):
        list(prune(PruningJob("deconvnet", settings, table, out, seed)))
    assert read == [(settings.vgg16, convention)] * 2 and np.load(out)["convention"] == CONVENTIONS.index(convention)
    assert all((inputs.abs().max() > 30) == (convention == "caffe") for inputs, _ in given), "to 255, or normalised"
    assert [seed for _, seed in given] == [0, 1] and not torch.equal(given[0][0], given[1][0])


def test_on_ray_it_does_the_same_and_logs_each_layer(tmp_path, vgg16, ray_executor, caplog):
    caplog.set_level(logging.INFO, "deconvnet")
    table = examples_table(str(tmp_path / "t"), 8)
    settings = ModelSettings(width=0.125, input_size=32, vgg16=vgg16)
    r2 = prune_on(ray_executor, PruningJob("deconvnet", settings, table, str(tmp_path / "ray.npz"), 0))
    assert list(r2) == NAMES
    assert [line.split(":")[0].strip() for line in caplog.messages] == NAMES
    assert len(load_vgg16(DeconvNet(3, 0.125, 32), str(tmp_path / "ray.npz"))) == 13
    absent = settings.model_copy(update={"vgg16": "/nowhere/vgg16.npz"})
    with pytest.raises(UserError) as error:
        prune_on(ray_executor, PruningJob("deconvnet", absent, table, str(tmp_path / "none.npz"), 0))
    assert str(error.value) == "there is no file /nowhere/vgg16.npz"
