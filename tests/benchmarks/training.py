"""The training loop against a minimal one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.common import Row, median_seconds, peak_flops

BATCH = 64
HALF = (0.5, 64)  # width of the networks, and side of their crops, in pixels, on CPUs
CLASSES = 21


def loop() -> list[Row]:
    """Compare `Trainer` with a minimal correct loop; both get the same batch again and again."""
    import torch

    if torch.cuda.is_available():
        return _loops("full size, 224 px", 1.0, 224, "cuda", steps=20)
    return _loops("half width, 64 px", *HALF, "cpu", steps=3)


def _loops(name: str, width: float, size: int, device: str, steps: int) -> list[Row]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from deconvnet import DeconvNet
    from deconvnet.settings import StageSettings
    from deconvnet.training.trainer import Trainer
    from infra.device import fast_bf16

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 3, size, size)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, (BATCH, size, size)).astype(np.uint8)
    bf16 = fast_bf16(device)

    @dataclass(frozen=True)
    class Same:
        steps_per_epoch: int = 10**6

        def batches(self, first_step: int, stop_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _ in range(first_step, stop_step):
                yield images, labels

    settings = StageSettings(batch=BATCH, max_steps=steps, bn_batches=0, schedule="constant", log_every=10**6)
    ours_model, minimal_model = DeconvNet(CLASSES, width, size), DeconvNet(CLASSES, width, size).to(device)

    def ours() -> None:
        Trainer(ours_model, settings, Same(), seed=0, device=device, bf16=bf16).fit()

    optimiser = torch.optim.SGD(minimal_model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def minimal() -> None:
        for _ in range(steps):
            x = minimal_model.prepare(torch.from_numpy(images).to(device))
            loss = torch.nn.functional.cross_entropy(minimal_model(x), torch.from_numpy(labels).long().to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()

    with FlopCounterMode(display=False) as counter:
        x = minimal_model.prepare(torch.from_numpy(images[:2]).to(device))
        minimal_model(x).sum().backward()
    flops = counter.get_total_flops() / 2
    ours_speed, minimal_speed = (BATCH * steps / each for each in median_seconds([ours, minimal]))
    kind = "bfloat16" if bf16 else "float32"
    share = 100 * ours_speed * flops / peak_flops(bf16, device)
    return [
        (f"training, {name}, batch {BATCH}", f"{ours_speed:.1f} crops/s"),
        ("  against a minimal loop (float32, contiguous)", f"{ours_speed / minimal_speed:.2f}× as fast"),
        (
            f"  share of the machine's {kind} peak ({peak_flops(bf16, device) / 1e9:,.0f} GFLOP/s by a matrix product)",
            f"{share:.0f} %",
        ),
    ]
