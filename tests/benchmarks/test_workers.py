"""The table of when another worker pays: it stands in docs/operations.md as computed, of the network as it is."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deconvnet import DeconvNet
from tests.benchmarks import workers
from tests.conftest import ROOT

L4, L4_BY_FOUR, *_ = workers.CLUSTERS


def test_the_page_has_the_computed_table() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert "\n".join(workers.table()) in page, "run python -m tests.benchmarks.workers"


def test_the_network_is_the_one_that_was_counted() -> None:
    with torch.device("meta"):
        network = DeconvNet(21).eval()
        images = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        network(images)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(sizes.values()) == workers.WEIGHTS
    assert 3 * counter.get_total_flops() == pytest.approx(workers.FLOPS, rel=1e-3)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == workers.BATCH_NORMS
    middle = sum(size for name, size in sizes.items() if name.startswith("fc"))
    assert middle / workers.WEIGHTS == pytest.approx(0.88, abs=0.005)


@pytest.mark.parametrize(
    ("cluster", "count", "batch", "size", "seconds"),
    [
        # Arithmetic 64 × 196.5e9 / 30.25e12; the optimiser moves 20 × 252e6 bytes at 300 GB/s.
        (L4, 1, 64, 4, 0.4157 + 0.0168),
        # Half of the arithmetic; 1.007 GB at 1 GB/s, of which a third of the arithmetic is hidden; 32 crops need no synchronised
        # norms.
        (L4, 2, 64, 4, 0.2079 + 0.0168 + 1.0072 - 0.0693),
        (L4, 2, 64, 2, 0.2079 + 0.0168 + 0.5036 - 0.0693),
        # Inside a node: 1.5 × 1.007 GB at 12.8 GB/s; 16 crops: 58 exchanges of 50 µs.
        (L4_BY_FOUR, 4, 64, 4, 0.1039 + 0.0168 + 0.0029 + 0.1180 - 0.0346),
        # Between nodes the slower link counts: 1.75 × 1.007 GB at 4 GB/s.
        (L4_BY_FOUR, 8, 512, 4, 0.4157 + 0.0168 + 0.4407 - 0.1386),
        # An exchange that is hidden entirely costs nothing.
        (L4_BY_FOUR, 4, 512, 2, 0.8315 + 0.0168),
    ],
)
def test_a_step_takes_what_the_model_says(cluster: workers.Cluster, count: int, batch: int, size: int, seconds: float) -> None:
    assert workers.step_seconds(cluster, count, batch, size) == pytest.approx(seconds, abs=3e-4)
