"""Training batches: what they cost beside the training, against batches from memory, and decoding alone."""

import logging
import statistics
import tempfile
import time
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
from tests.benchmarks.common import Row, sample_images, seconds
from tests.benchmarks.training import BATCH, CLASSES, HALF


def feeding() -> list[Row]:
    """Compare training under Ray Train, with batches from Parquet, with the same loop on crops kept in memory."""
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
    ratios, speeds, waits = [], [], []
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
                seconds_by_phase = train_on_ray(job)["step_seconds"]
            waits.append(seconds_by_phase["waiting_for_data"] / sum(seconds_by_phase.values()))
            fed = _steady(
                [{"samples_per_s": float(line.split(" examples/s")[0].split()[-1])} for line in lines if "examples/s" in line]
            )
            ratios.append(fed / memory)
            speeds.append(fed)
    ray.shutdown()
    return [
        ("training under Ray Train, batches from Parquet, one worker", f"{statistics.median(speeds):.1f} crops/s"),
        (
            "  against the same loop on encoded crops in memory",
            f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})",
        ),
        (
            "  share of a step's time in which it waits for data",
            f"{100 * statistics.median(waits):.1f} % ({', '.join(f'{100 * w:.1f}' for w in waits)})",
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


def launches() -> list[Row]:
    """Time what a training on a GPU does on the CPU, the start of many small operations, while batches are made beside it.

    In place of a GPU's operations, small ones are computed on the CPU. A step starts 4,000 of them, which takes some 30 ms on an
    idle core, and then takes a batch.
    """
    import torch

    torch.set_num_threads(1)
    numbers = torch.zeros(8)

    def step() -> float:
        started = time.perf_counter()
        for _ in range(4000):
            numbers.add_(1)
        return time.perf_counter() - started

    found: dict[str, list[float]] = {"no": [], "threads": [], "process": []}
    speeds: dict[str, list[float]] = {"threads": [], "process": []}
    with tempfile.TemporaryDirectory() as folder:
        plan = BatchPlan.of(open_examples(_examples(f"{folder}/examples", 224), 224), BATCH, 1, 0)
        for _ in range(5):
            found["no"].append(statistics.median(step() for _ in range(40)))
            for way in ("threads", "process"):
                batches = BatchLoader(plan, threads=1, own_process=way == "process").batches(0, 60)
                for _ in range(10):
                    next(batches)
                started = time.perf_counter()
                times = []
                for _ in batches:
                    times.append(step())
                found[way].append(statistics.median(times))
                speeds[way].append(BATCH * len(times) / (time.perf_counter() - started))

    def shown(values: list[float], factor: float = 1.0) -> str:
        return f"{factor * statistics.median(values):.0f} ({factor * min(values):.0f}–{factor * max(values):.0f})"

    return [
        ("4,000 small operations, no batches beside them", f"{shown(found['no'], 1000)} ms"),
        *(
            (
                f"  batches of {BATCH} crops of 224 px by one thread of {where}",
                f"{shown(found[way], 1000)} ms; {shown(speeds[way])} crops/s",
            )
            for way, where in (("threads", "the same process"), ("process", "another process"))
        ),
    ]


def inputs() -> list[Row]:
    """Time the decoding and augmentation of stored crops on one core."""
    rows: list[Row] = []
    for size in (HALF[1], 224):
        with tempfile.TemporaryDirectory() as folder:
            examples = open_examples(_examples(f"{folder}/examples", size, 256), size)
            stored = [(r["image"], r["mask"]) for g in range(len(examples.groups)) for r in examples.read(g).to_pylist()]

            def work(stored: list[tuple[bytes, bytes]] = stored, examples: Examples = examples) -> None:
                for number, (image, mask) in enumerate(stored):
                    examples.transform(image, mask, np.random.default_rng([0, number]))

            work()
            rows.append(
                (
                    f"decoded, augmented crops of {size} px, one core",
                    f"{len(stored) / min(seconds(work) for _ in range(3)):,.0f} /s",
                )
            )
    return rows
