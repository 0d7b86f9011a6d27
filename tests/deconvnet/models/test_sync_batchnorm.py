"""Synchronised batch norm in two processes equals plain batch norm on all examples together."""

import copy
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deconvnet import DeconvNet
from deconvnet.models.sync_batchnorm import SyncBatchNorm2d, convert_sync, recompute_statistics
from tests.processes import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")

SHARES = {"even": (3, 3), "uneven": (5, 1), "one has none": (6, 0)}


def small_net():
    """A network whose first convolution has no rounding, as its weights and the images are multiples of powers of two.

    Its means are large beside their standard deviations. So its rounding, which differs between CPUs, would be large, too.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2, momentum=None))
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].bias.uniform_(-1, 1)
        for parameter in net[0].parameters():
            parameter.copy_((parameter * 32).round() / 32)
        net[0].bias += 50
    return net


def images(seed=1):
    return (torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 8).round() / 8


def two_steps(net, batches):
    """Compute outputs, input gradients and summed parameter gradients of two forward and backward passes."""
    outputs, gradients = [], []
    for batch in batches:
        batch = batch.clone().requires_grad_()
        out = net(batch)
        (out * torch.linspace(-1, 1, 49).view(7, 7)[:5, :5]).square().sum().backward()
        outputs.append(out.detach())
        gradients.append(batch.grad)
    return outputs, gradients, [p.grad for p in net.parameters()]


def _worker(rank, folder, share):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{share}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    start = 0 if rank == 0 else SHARES[share][0]
    mine = slice(start, start + SHARES[share][rank])
    net = convert_sync(small_net())
    outputs, gradients, parameters = two_steps(net, [images(s)[mine] for s in (1, 2)])
    for p in parameters:
        dist.all_reduce(p)
    results = {"outputs": outputs, "gradients": gradients, "parameters": parameters, "state": copy.deepcopy(net.state_dict())}
    results["float64"] = two_steps(convert_sync(small_net().double()), [images(s)[mine].double() for s in (1, 2)])[:2]

    plain = small_net().train()
    plain[1].momentum = 0.3
    count = recompute_statistics(plain, [images(s)[:2] for s in ((3,) if rank == 0 else (4, 5))])
    results |= {"recomputed": plain.state_dict(), "count": count, "modes": [m.training for m in plain.modules()]}
    recompute_statistics(net, [images(s)[mine] for s in (3, 4)])
    results["recomputed_sync"] = net.state_dict()
    torch.save(results, f"{folder}/{share}-{rank}.pt")
    dist.destroy_process_group()


def _workers(rank, folder):
    for share in SHARES:
        _worker(rank, folder, share)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    run_ranks(_workers, (str(folder),), 2)
    return {share: [torch.load(folder / f"{share}-{rank}.pt", weights_only=True) for rank in (0, 1)] for share in SHARES}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", SHARES)
def test_two_workers_equal_one_with_all_examples(results, share):
    expected = small_net().double()
    outputs, gradients, parameters = two_steps(expected, [images(s).double() for s in (1, 2)])
    ranks = results[share]
    for step in (0, 1):
        close(torch.cat([r["outputs"][step] for r in ranks]).double(), outputs[step])
        scale = gradients[step].abs().max()
        close(torch.cat([r["gradients"][step] for r in ranks]).double() / scale, gradients[step] / scale)
    for rank in ranks:
        for mine, one in zip(rank["parameters"], parameters, strict=True):
            scale = max(float(p.abs().max()) for p in parameters)
            close(mine.double() / scale, one / scale)
        assert rank["state"].keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            close(rank["state"][name].double(), value.double())


@pytest.mark.parametrize("share", SHARES)
def test_in_float64_nothing_is_rounded_to_float32(results, share):
    outputs, gradients, _ = two_steps(small_net().double(), [images(s).double() for s in (1, 2)])
    for number, expected in enumerate((outputs, gradients)):
        for step in (0, 1):
            found = torch.cat([rank["float64"][number][step] for rank in results[share]])
            torch.testing.assert_close(found, expected[step], rtol=0, atol=1e-11 * float(expected[step].abs().max()))


def test_recomputed_statistics_are_the_average_over_all_workers_batches(results):
    expected = small_net().eval()
    means = [expected[0](images(s)[:2]).mean((0, 2, 3)) for s in (3, 4, 5)]
    for rank in results["even"]:
        close(rank["recomputed"]["1.running_mean"], torch.stack(means).mean(0))
        assert rank["count"] == 3
        assert all(rank["modes"])


@pytest.mark.parametrize("share", SHARES)
def test_recomputed_statistics_of_synchronised_layers_are_those_of_whole_batches(results, share):
    expected = small_net()
    recompute_statistics(expected, [images(3), images(4)])
    for rank in results[share]:
        for name, value in expected.state_dict().items():
            if "running" in name:
                close(rank["recomputed_sync"][name], value)


def test_recomputing_averages_all_batches_and_changes_nothing_else():
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.25), nn.Dropout(0.5)).eval()
    net[0].running_mean.fill_(100)
    batches = [torch.randn(2, 3, 4, 4) + 5, torch.randn(8, 3, 4, 4) - 1]
    assert recompute_statistics(net, iter(batches)) == 2
    close(net[0].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    close(net[0].running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert net[0].momentum == 0.25
    assert not any(m.training for m in net.modules())
    assert net[0].weight.grad is None
    with pytest.raises(ValueError, match="at least one batch"):
        recompute_statistics(net, [])


def test_without_other_workers_it_is_plain_batch_norm():
    plain = small_net()
    sync = convert_sync(copy.deepcopy(plain))
    assert sum(isinstance(m, SyncBatchNorm2d) for m in sync.modules()) == 2
    for a, b in zip(two_steps(plain, [images()]), two_steps(sync, [images()]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_conversion_keeps_parameters_buffers_and_names():
    net = DeconvNet(2, width=0.125, input_size=32).eval()
    names = list(net.state_dict())
    net.conv1.get_submodule("1.norm").momentum = 0.2
    parameters = list(net.parameters())
    sync = convert_sync(net)
    assert list(sync.state_dict()) == names
    assert all(a is b for a, b in zip(sync.parameters(), parameters, strict=True))
    assert sync.conv1.get_submodule("1.norm").momentum == 0.2
    assert not any(m.training for m in sync.modules())
    assert {type(m) for m in sync.modules() if "BatchNorm" in type(m).__name__} == {SyncBatchNorm2d}


def test_a_model_on_a_gpu_gets_torch_s_synchronised_batch_norm(monkeypatch):
    net = small_net()
    monkeypatch.setattr(net, "parameters", lambda: iter([SimpleNamespace(is_cuda=True)]))
    layer = convert_sync(net)[1]
    assert type(layer) is nn.SyncBatchNorm and layer.weight.shape == (4,)


def test_a_model_that_is_one_batch_norm_is_converted():
    assert isinstance(convert_sync(nn.BatchNorm2d(3)), SyncBatchNorm2d)
