"""The table in docs/operations.md of how fast training would be with more workers: computed from a simple model, not measured.

  python -m tests.benchmarks.workers

A step takes as long as the network's arithmetic on a worker's share of the batch, the optimiser's traffic to memory, small
exchanges of synchronised batch norm, and that part of the all-reduce that the backward pass does not hide. A ring all-reduce
moves 2 (n − 1) / n times the gradients through each worker's slowest link. With several GPUs a node, the node's link is passed as
often as by one GPU.
"""

from dataclasses import dataclass

from deconvnet.training.trainer import SYNC_BATCH_NORM_BELOW

WEIGHTS = 251_805_653
"""Parameters of DeconvNet at full width with 21 classes."""
FLOPS = 3 * 65.5e9
"""Floating-point operations a crop of 224 px: forward 65.5e9, and backward twice as many."""
BATCH_NORMS = 29
"""Batch norms of DeconvNet, each of which is exchanged in the forward and in the backward pass."""
PEAK_SHARE = 0.25
"""Share of the GPU's peak in bfloat16 that training reaches."""
LINK_SHARE = 0.8
"""Share of a link's nominal speed that an all-reduce reaches."""
LATENCY = 50e-6
"""Seconds of an exchange of next to nothing."""
HIDDEN = 1 / 3
"""Share of forward and backward pass behind which the exchange is hidden.

The backward pass is two thirds, and the gradients of the layers in the middle (fc6 to the first deconvolution, 88 % of all) are
known after half of it.
"""
PAYS = 1.5
"""Twice the workers pay if they are at least so many times as fast."""
WORKERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Cluster:
    """Nodes with GPUs.

    Attributes:
        name: what they are.
        gpus: GPUs a node.
        flops: peak of a GPU in bfloat16, FLOP/s.
        memory: bandwidth of a GPU's memory, bytes/s.
        inside: link of a GPU within its node, bytes/s.
        between: link of a node to the others, bytes/s.
    """

    name: str
    gpus: int
    flops: float
    memory: float
    inside: float
    between: float


CLUSTERS = (
    Cluster("L4, 1 a node, 10 Gbit/s", 1, 121e12, 300e9, 0, 10e9 / 8),
    Cluster("L4, 4 a node, 40 Gbit/s", 4, 121e12, 300e9, 16e9, 40e9 / 8),
    Cluster("H100, 1 a node, 100 Gbit/s", 1, 989e12, 3.35e12, 0, 100e9 / 8),
    Cluster("H100, 8 a node, 3,200 Gbit/s", 8, 989e12, 3.35e12, 450e9, 3200e9 / 8),
)


def step_seconds(cluster: Cluster, workers: int, batch: int, gradient_bytes: int) -> float:
    """Return the seconds that a step takes.

    Args:
        cluster: the nodes. They are filled one after the other.
        workers: number of workers, one for each GPU.
        batch: crops in a global batch.
        gradient_bytes: bytes in which a gradient is exchanged: 4 for float32, 2 for bfloat16.
    """
    compute = batch / workers * FLOPS / (PEAK_SHARE * cluster.flops)
    optimiser = 5 * 4 * WEIGHTS / cluster.memory  # weight, gradient and momentum are read, weight and momentum written
    if workers == 1:
        return compute + optimiser
    norms = 2 * BATCH_NORMS * LATENCY if batch / workers < SYNC_BATCH_NORM_BELOW else 0.0
    link = LINK_SHARE * (cluster.inside if workers <= cluster.gpus else min(cluster.between, cluster.inside or cluster.between))
    exchange = 2 * (workers - 1) / workers * WEIGHTS * gradient_bytes / link
    return compute + optimiser + norms + max(0.0, exchange - HIDDEN * compute)


def table() -> list[str]:
    """Return the table as lines of Markdown: crops/s with gradients in float32, and in bfloat16 where that differs.

    Numbers are bold as long as twice the workers pay.
    """
    lines = [f"| | batch | {' | '.join(f'{n}' for n in WORKERS)} |", f"|---|---:|{'---:|' * len(WORKERS)}"]
    for cluster in CLUSTERS:
        for batch in (64, 512):
            speeds = {size: [batch / step_seconds(cluster, n, batch, size) for n in WORKERS] for size in (4, 2)}
            cells = []
            for i in range(len(WORKERS)):
                shown = {}
                for size, found in speeds.items():
                    pays = i == 0 or found[i] >= PAYS * found[i - 1]
                    shown[size] = f"**{_rounded(found[i])}**" if pays else _rounded(found[i])
                cells.append(" / ".join(dict.fromkeys(shown.values())))
            lines.append(f"| {cluster.name} | {batch} | {' | '.join(cells)} |")
    return lines


def _rounded(speed: float) -> str:
    """Format a number with two significant digits."""
    return f"{float(f'{speed:.2g}'):,.0f}"


if __name__ == "__main__":
    print("\n".join(table()))
