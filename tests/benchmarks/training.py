"""Training: the loop against a minimal one, batches by Ray Data against batches from memory, and augmentation alone."""

import logging
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.examples import Examples, open_examples
from infra.storage import tables
from proposals import schemas
from tests.benchmarks.common import Row, median_seconds, peak_flops, sample_images, seconds

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


def feeding() -> list[Row]:
    """Compare training under Ray Train, with batches by Ray Data from Parquet, with the same loop on crops kept in memory."""
    import ray
    import torch

    from deconvnet import DeconvNet
    from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
    from deconvnet.training.job import TrainingJob
    from deconvnet.training.ray_trainer import train_on_ray
    from deconvnet.training.trainer import Trainer
    from infra.device import fast_bf16

    width, size = HALF
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    model = ModelSettings(width=width, input_size=size)
    settings = StageSettings(batch=BATCH, epochs=100, max_steps=60, bn_batches=0, schedule="constant", log_every=10)
    classes = tuple(str(c) for c in range(CLASSES))
    ratios, speeds = [], []
    threads = 2
    ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        table = _examples(f"{folder}/examples", size)
        for turn in range(3):
            reports: list[dict[str, float]] = []

            def keep(metrics: dict[str, float], state: Any, reports: list[dict[str, float]] = reports) -> None:
                reports.append(metrics)

            torch.set_num_threads(threads)
            examples = InMemory(**_fields(open_examples(table, size)))
            network = DeconvNet(CLASSES, width, size)
            shard = BatchLoader(BatchPlan.of(examples, BATCH, 1, 0), threads=1)
            Trainer(network, settings, shard, seed=0, device=device, bf16=fast_bf16(device)).fit(report=keep)
            memory = _steady(reports)
            job = TrainingJob(
                stage="stage1",
                model=model,
                settings=settings,
                compute=ComputeSettings(threads=threads, gpu=gpu),
                examples_uri=table,
                dev_uri=None,
                classes=classes,
                checkpoints_uri=f"{folder}/train",
                run_name=f"run{turn}",
                out_uri=f"{folder}/model{turn}",
            )
            with logged_lines("deconvnet.training") as lines:
                train_on_ray(job)
            fed = _steady(
                [{"samples_per_s": float(line.split(" examples/s")[0].split()[-1])} for line in lines if "examples/s" in line]
            )
            ratios.append(fed / memory)
            speeds.append(fed)
    ray.shutdown()
    return [
        ("training under Ray Train, batches by Ray Data from Parquet, one worker", f"{statistics.median(speeds):.1f} crops/s"),
        (
            "  against the same loop on encoded crops in memory",
            f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})",
        ),
    ]


@contextmanager
def logged_lines(name: str) -> Iterator[list[str]]:
    """Collect the messages that a package logs during a block."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collect()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _steady(reports: list[dict[str, float]]) -> float:
    """Return the median crops/s of the reports after the first two, in which processes start."""
    return statistics.median(r["samples_per_s"] for r in reports[2:] if "samples_per_s" in r)


def _fields(examples: Examples) -> dict[str, Any]:
    """Return the fields of examples by name, as they are."""
    return {each.name: getattr(examples, each.name) for each in fields(examples)}


@dataclass(frozen=True)
class InMemory(Examples):
    """Examples whose encoded crops are kept in memory."""

    kept: dict[int, pa.Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept.update({number: Examples.read(self, number) for number in range(len(self.groups))})

    def footer(self, file: int) -> None:
        return None

    def read(self, number: int, footer: Any = None) -> pa.Table:
        return self.kept[number]


def _examples(uri: str, size: int, count: int = 1024) -> str:
    """Write an `examples` table of crops from images, with masks made from their brightness, and return its URI."""
    from proposals.boxes import crop
    from proposals.image_codec import encode_jpeg, encode_mask
    from proposals.mining.rules import example_size

    rng = np.random.default_rng(0)
    stored, sources = example_size(size), sample_images(32)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(count):
            source = sources[number % len(sources)]
            x, y = rng.uniform(0, 250), rng.uniform(0, 150)
            side = float(rng.uniform(60, 250))
            cut = crop(source, (x, y, x + side, y + side), stored)
            mask = (cut.mean(axis=2) // 13).astype(np.uint8)
            yield {
                "image_id": f"{number:06}",
                "stage": 1,
                "box": [x, y, x + side, y + side],
                "class_ids": [1],
                "iou": 1.0,
                "image": encode_jpeg(cut, 95),
                "mask": encode_mask(mask),
            }

    part = tables.write_part(uri, "benchmark", 0, rows(), schemas.EXAMPLES)
    tables.commit(uri, "benchmark", [part], {"repeats_by_class": {"1": 1}})
    return uri


def inputs() -> list[Row]:
    """Time the decoding and augmentation of stored crops on one core."""
    rows: list[Row] = []
    for size in (HALF[1], 224):
        with tempfile.TemporaryDirectory() as folder:
            examples = open_examples(_examples(f"{folder}/examples", size, 256), size)
            stored = [(r["image"], r["mask"]) for g in range(len(examples.groups)) for r in examples.read(g).to_pylist()]

            def work(stored: list[tuple[bytes, bytes]] = stored, examples: Examples = examples) -> None:
                for number, (image, mask) in enumerate(stored):
                    examples.view(image, mask, np.random.default_rng([0, number]))

            work()
            rows.append(
                (
                    f"decoded, augmented crops of {size} px, one core",
                    f"{len(stored) / min(seconds(work) for _ in range(3)):,.0f} /s",
                )
            )
    return rows
