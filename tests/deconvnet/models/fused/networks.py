"""Small networks in float64 for the tests of fused layers, and their gradients."""

import torch
from torch import nn

from deconvnet import DeconvNet, FCN8s

KINDS = {
    "deconvnet": lambda: DeconvNet(5, 0.125, 32),
    "decoder of another width": lambda: DeconvNet(5, 0.25, 32, encoder_width=0.375, fc_channels=256),
    "fcn8s": lambda: FCN8s(5, 0.125, batch_norm=True),
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made = KINDS[kind]()
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # so that every layer gets a gradient
            nn.init.kaiming_normal_(module.weight)
    return made.double().to(memory_format=torch.channels_last)  # float64, because rounding grows over the layers


def images() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    scores = model(x)
    (scores * torch.linspace(-1, 1, 32, dtype=torch.float64)).sum().backward()
    return {"scores": scores.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("conv.bias") and value.abs().max() < 1e-9:
            continue  # batch norm makes this 0, so what is left is rounding
        scale = value.abs().max() + 1e-9
        torch.testing.assert_close(found[name] / scale, value / scale, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
