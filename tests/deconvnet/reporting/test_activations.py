"""`decoder_maps`: it returns the most active map of each layer and leaves the network as it was."""

import numpy as np
import pytest
import torch

from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fusion import for_inference
from deconvnet.reporting.activations import LAYERS, decoder_maps


@pytest.fixture
def network() -> DeconvNet:
    torch.manual_seed(3)
    made = DeconvNet(num_classes=4, width=0.0625, input_size=64)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def crop(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)


def outputs(network: DeconvNet, crop: np.ndarray) -> dict[str, torch.Tensor]:
    """The output of each decoder layer, by running the network layer by layer."""
    with torch.inference_mode():
        x = network.eval().prepare(torch.from_numpy(crop).permute(2, 0, 1)[None])
        switches, found = {}, {}
        for number in (1, 2, 3, 4, 5):
            x, switches[number] = network.pool(network.get_submodule(f"conv{number}")(x))
        x = network.fc6_deconv(network.fc7(network.fc6(x)))
        for number in (5, 4, 3, 2, 1):
            x = found[f"unpool{number}"] = network.get_submodule(f"unpool{number}")(x, switches[number])
            x = found[f"deconv{number}"] = network.get_submodule(f"deconv{number}")(x).clone()
        found["mask"] = network.score(x)[0].argmax(0)
    return found


def test_each_map_is_the_one_with_the_largest_sum(network: DeconvNet, crop: np.ndarray) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    maps, mask = decoder_maps(network, crop)
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    expected = outputs(network, crop)
    assert tuple(maps) == LAYERS
    assert [each.shape[0] for each in maps.values()] == [4, 4, 8, 8, 16, 16, 32, 32, 64, 64]
    for name, found in maps.items():
        sums = expected[name][0].sum(dim=(1, 2))
        assert found.sum() == pytest.approx(float(sums.max()), rel=1e-4) and found.min() >= 0
        np.testing.assert_allclose(found, expected[name][0, int(sums.argmax())].numpy(), rtol=1e-4, atol=1e-4)
    assert mask.dtype == np.uint8 and (mask == expected["mask"].numpy()).all()
    assert sum((each > 0).sum() for each in maps.values()) > 100, "the maps must not be all zero"


def test_only_pixels_of_the_given_region_count(network: DeconvNet, crop: np.ndarray) -> None:
    where = np.zeros((64, 64), bool)
    where[:16, 48:] = True
    maps, _ = decoder_maps(network, crop, where)
    expected = outputs(network, crop)
    for name in ("unpool1", "deconv1", "deconv2"):
        values = expected[name][0]
        side = values.shape[-1] // 4
        chosen = int(values[:, :side, -side:].sum(dim=(1, 2)).argmax())
        np.testing.assert_allclose(maps[name], values[chosen].numpy(), rtol=1e-4, atol=1e-4)
    everywhere, _ = decoder_maps(network, crop, np.zeros((64, 64), bool))
    anywhere, _ = decoder_maps(network, crop)
    assert all((everywhere[name] == anywhere[name]).all() for name in LAYERS), "an empty region means all pixels"
    assert any((maps[name] != anywhere[name]).any() for name in LAYERS)


def test_a_network_converted_for_inference_has_the_same_maps(network: DeconvNet, crop: np.ndarray) -> None:
    converted, _ = decoder_maps(for_inference(network, bf16=False), crop)
    unconverted, _ = decoder_maps(network, crop)
    for name in LAYERS:
        np.testing.assert_allclose(converted[name], unconverted[name], rtol=1e-3, atol=1e-3)
