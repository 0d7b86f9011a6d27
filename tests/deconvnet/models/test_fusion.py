"""Networks prepared for inference give the scores of those they were copied from."""

import pytest
import torch
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models import fusion
from deconvnet.models.fused.products import WinogradConv2d
from deconvnet.models.fusion import for_inference
from deconvnet.models.layers import as_convolution_kernel, units
from deconvnet.models.sync_batchnorm import recompute_statistics

KINDS = [lambda: DeconvNet(5, 0.125, 64), lambda: FCN8s(5, 0.125, batch_norm=True), lambda: FCN8s(5, 0.125)]


@pytest.fixture
def images():
    coarse = torch.rand(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(params=KINDS, ids=["deconvnet", "fcn8s with batch norm", "fcn8s"])
def network(request, images):
    """A network with weights and batch-norm statistics as after training."""
    torch.manual_seed(3)
    made = request.param()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    recompute_statistics(made, [made.prepare(images)])
    return made


def scores(network, images):
    with torch.inference_mode():
        return network(network.prepare(images)).float()


def outputs(network, part, images):
    seen = []
    network.get_submodule(part).register_forward_hook(lambda module, inputs, output: seen.append(output.float()))
    scores(network, images)
    return seen[0]


def test_folding_batch_norms_into_the_layers_before_them_keeps_the_scores(network, images):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused = for_inference(network, bf16=False)
    assert network.training and not fused.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())  # the original is unchanged
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    expected = scores(network.eval(), images)
    # Winograd's convolutions differ by about 1e-5 of the largest value, and that grows over the layers.
    torch.testing.assert_close(scores(fused, images), expected, rtol=1e-3, atol=5e-4 * float(expected.abs().max()))


def test_in_float32_on_a_cpu_all_3x3_layers_but_the_first_are_computed_by_winograds_method():
    """The first has 3 channels, and the others of these layers are no convolutions of 3×3."""
    converted = for_inference(DeconvNet(5, 0.25, 64), bf16=False)
    kept = [name for name, part in units(converted).items() if not isinstance(part.conv, WinogradConv2d)]
    assert kept == ["conv1.1", "fc6", "fc7", "fc6_deconv"]


def test_a_network_that_was_converted_before_stays_as_it_is(network, images):
    once = for_inference(network, bf16=False)
    assert torch.equal(scores(for_inference(once, bf16=False), images), scores(once, images))


def test_bfloat16_is_close_to_float32(network, images, monkeypatch):
    """bfloat16 is used only on CPUs that are fast at it; here on any.

    Only the encoder of an untrained DeconvNet is compared: a few switches in a hundred differ, and the decoder amplifies that.
    """
    monkeypatch.setattr(fusion, "fast_bf16", lambda device: True)
    fused = for_inference(network)
    assert next(fused.parameters()).dtype == torch.bfloat16
    part = "conv5" if isinstance(network, DeconvNet) else "up_pool3"
    found = [outputs(each, part, images) for each in (network.eval(), fused)]
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.1


def test_a_device_that_is_not_fast_at_it_keeps_float32(network, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert next(for_inference(network).parameters()).dtype == torch.float32


def test_the_equivalent_convolution_computes_the_deconvolution():
    layer = nn.ConvTranspose2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(nn.functional.conv2d(x, as_convolution_kernel(layer.weight), layer.bias, padding=1), layer(x))
