"""Networks with fused layers learn what they learn without, alone and in two processes."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.fused.cpu import convolution
from deconvnet.models.fused.layers import FusedMaxPool2d, FusedUnit, FusedUnpool, use_fused_layers
from deconvnet.models.fusion import for_inference
from deconvnet.models.sync_batchnorm import convert_sync
from tests.processes import run_ranks

KINDS = {
    "deconvnet": lambda: DeconvNet(5, 0.125, 32),
    "narrow decoder": lambda: DeconvNet(5, 0.125, 32, encoder_width=0.25),
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


@pytest.mark.parametrize("frozen", [(), ("conv1", "conv2")])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_gradients_and_statistics_are_those_of_torchs_layers(kind, frozen, monkeypatch):
    for limit in ("LEAST_CHANNELS", "LEAST_WORK", "LEAST_WEIGHTS"):  # so that narrow layers are computed by Winograd's method
        monkeypatch.setattr(convolution, limit, 0)
    plain = network(kind)
    plain.freeze(frozen)
    plain.train()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    assert_alike(gradients(fused, images()), gradients(plain, images()))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_gradients_pass_through_frozen_layers_to_trained_ones(monkeypatch):
    for limit in ("LEAST_CHANNELS", "LEAST_WORK"):
        monkeypatch.setattr(convolution, limit, 0)
    plain = network("fcn8s")
    plain.freeze(("conv2",))
    plain.train()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    assert_alike(gradients(fused, images()), gradients(plain, images()))


def test_all_layers_are_converted_once():
    model = network("deconvnet")
    for _ in range(2):
        use_fused_layers(model)
        counts = [sum(type(m) is kind for m in model.modules()) for kind in (FusedUnit, FusedMaxPool2d, FusedUnpool)]
        assert counts == [29, 1, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_inference_are_unchanged(kind):
    plain = network(kind).eval()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    with torch.no_grad():
        assert torch.equal(fused(images()), plain(images()))
        assert torch.equal(for_inference(fused, bf16=False)(images().float()), for_inference(plain, bf16=False)(images().float()))


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for kind in KINDS:
        for share in ((3, 3), (5, 1), (6, 0)):
            model = network(kind)
            convert_sync(model)
            use_fused_layers(model)
            found = gradients(model, images().split(share)[rank])
            for name, value in found.items():
                if name != "scores":
                    dist.all_reduce(value)
            torch.save({**found, **model.state_dict(prefix="state.")}, f"{folder}/{kind}-{share[0]}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gloo")
    run_ranks(_worker, (str(path),), 2)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [3, 5, 6])
def test_two_workers_learn_what_one_learns(folder, kind, first):
    model = network(kind)
    expected = gradients(model, images())
    ranks = [torch.load(folder / f"{kind}-{first}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank in ranks:
        state = {name.removeprefix("state."): rank.pop(name) for name in list(rank) if name.startswith("state.")}
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6)
    scores = torch.cat([rank["scores"] for rank in ranks])
    assert_alike({**ranks[0], "scores": scores}, expected)
