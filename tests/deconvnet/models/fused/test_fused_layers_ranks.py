"""Networks with fused layers on two ranks learn what one learns without."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from deconvnet.models.fused.layers import use_fused_layers
from deconvnet.models.sync_batchnorm import convert_sync
from tests.deconvnet.models.fused.networks import assert_alike, gradients, images, network
from tests.processes import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")

CASES = [("deconvnet", 5), ("deconvnet", 6), ("decoder of another width", 5), ("fcn8s", 5)]
"""Kinds of networks, and how many of six examples the first rank has. The second one may have none."""


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for kind, first in CASES:
        model = network(kind)
        convert_sync(model)
        use_fused_layers(model)
        found = gradients(model, images().split((first, 6 - first))[rank])
        for name, value in found.items():
            if name != "scores":
                dist.all_reduce(value)
        torch.save({**found, **model.state_dict(prefix="state.")}, f"{folder}/{kind}-{first}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gloo")
    run_ranks(_worker, (str(path),), 2)
    return path


@pytest.mark.parametrize(("kind", "first"), CASES)
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
