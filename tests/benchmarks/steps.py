"""Training steps as `Trainer` does them, against those with torch's own layers, loss, SGD and memory; and parts of them."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from unittest import mock

import numpy as np
import torch
import yaml
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.architectures import DECONVNET, FCN8S
from deconvnet.models.factory import build_network
from deconvnet.models.fused import loss
from deconvnet.models.layers import MatrixConv2d, MatrixDeconv2d
from deconvnet.models.network import Network
from deconvnet.settings import ModelSettings, StageSettings
from deconvnet.training import optimizer, trainer
from deconvnet.training.data.device_batches import host_batch
from deconvnet.training.trainer import Trainer
from infra.device import cudnn_benchmark, fast_bf16
from infra.memory import keep_freed_memory
from tests.benchmarks.common import Row
from tests.benchmarks.serving import CONFIG

CLASSES = 21
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Networks = dict[str, tuple[Callable[[], Network], int, int]]
"""A function that makes the network, the number of examples in a batch, and their side in pixels."""
ON_CPUS: Networks = {
    "DeconvNet of half width, 64 crops of 64 px": (lambda: DeconvNet(CLASSES, 0.5, 64), 64, 64),
    "DeconvNet at full size, 8 crops of 224 px": (lambda: DeconvNet(CLASSES, 1.0, 224), 8, 224),
    "FCN-8s of half width, 8 images of 192 px": (lambda: FCN8s(CLASSES, 0.5, batch_norm=True, input_size=192), 8, 192),
}
ON_GPUS: Networks = {
    "DeconvNet at full size, 64 crops of 224 px": (lambda: DeconvNet(CLASSES, 1.0, 224), 64, 224),
    "FCN-8s at full size, 20 images of 512 px": (lambda: FCN8s(CLASSES, 1.0, batch_norm=True, input_size=512), 20, 512),
}


def steps(rounds: int = 5, each: int = 3) -> list[Row]:
    """Time steps of both kinds in turns, in one process; the first step of each turn is not counted."""
    rows: list[Row] = []
    for name, (make, batch, size) in (ON_GPUS if DEVICE == "cuda" else ON_CPUS).items():
        pair = [_Steps(make, batch, size, plain) for plain in (False, True)]
        taken: list[list[float]] = [[], []]
        for _ in range(rounds):
            for kind, seconds in zip(pair, taken, strict=True):
                seconds += kind.run(each)
        ours, plain = (statistics.median(seconds) for seconds in taken)
        ratios = [
            b / a
            for a, b in zip(*[[statistics.median(s[i : i + each]) for i in range(0, len(s), each)] for s in taken], strict=True)
        ]
        rows.append((f"training step, {name}", f"{batch / ours:.1f} examples/s"))
        rows.append(("  against torch's layers, loss and SGD", f"{plain / ours:.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"))
    return rows


def winograd(rounds: int = 5) -> list[Row]:
    """Time steps of `voc_sample_cpu.yaml`, in float32 on CPUs, against the same with torch's 3×3 convolutions, in turns."""
    from deconvnet.models.fused.cpu import convolution
    from deconvnet.models.fused.cpu.winograd import DTYPES

    config = yaml.safe_load(CONFIG.read_text())
    torch.set_num_threads(config["compute"]["threads"])
    model = ModelSettings(**{**config["model"], "vgg16": None})
    rows: list[Row] = []
    for kind, stage, size in ((DECONVNET, "stage1", model.input_size), (FCN8S, "fcn8s", model.fcn_input_size)):
        given = config["train"][stage]
        settings = StageSettings(batch=given["batch"], freeze=given["freeze"], max_steps=1, bn_batches=0, schedule="constant")
        work = _Steps(partial(build_network, kind, model, CLASSES), given["batch"], size, False, settings)
        taken: list[list[float]] = [[], []]
        for _ in range(rounds):
            for dtypes, seconds in zip((DTYPES, {}), taken, strict=True):
                with mock.patch.object(convolution.winograd, "DTYPES", dtypes):
                    seconds += work.run(1)
        ratios = [b / a for a, b in zip(*taken, strict=True)]
        ours, plain = (statistics.median(seconds) for seconds in taken)
        rows.append(
            (f"training step of `{CONFIG.name}` in float32, {kind.name}, batch {given['batch']} of {size} px", f"{ours:.2f} s")
        )
        rows.append(("  against torch's 3×3 convolutions", f"{plain / ours:.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"))
    return rows


@contextmanager
def _plain() -> Iterator[None]:
    """In this block trainers, optimisers and losses are made of torch's operations."""
    with (
        mock.patch.object(trainer, "use_fused", lambda device: False),
        mock.patch.object(optimizer, "use_fused", lambda device: False),
        mock.patch.object(loss, "use_fused", lambda device: False),
    ):
        yield


@dataclass(frozen=True)
class _Same:
    """A loader whose batches are never used, because steps are called directly."""

    steps_per_epoch: int = 10**6

    def batches(self, first_step: int, stop_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from ()


class _Steps:
    """Training steps of a network on one batch of noise."""

    def __init__(
        self, make: Callable[[], Network], batch: int, size: int, plain: bool, settings: StageSettings | None = None
    ) -> None:
        rng = np.random.default_rng(0)
        arrays = rng.integers(0, 256, (batch, 3, size, size)), rng.integers(0, CLASSES, (batch, size, size))
        images, masks = (array.astype(np.uint8) for array in arrays)
        self.images, self.masks = host_batch((images, masks), pinned=DEVICE == "cuda")
        self.plain = plain
        torch.manual_seed(0)
        network = make()
        if plain:
            for layer in network.modules():
                for ours, theirs in ((MatrixConv2d, nn.Conv2d), (MatrixDeconv2d, nn.ConvTranspose2d)):
                    if type(layer) is ours:
                        layer.__class__ = theirs
        bf16 = fast_bf16(DEVICE) and settings is None
        settings = settings or StageSettings(batch=batch, max_steps=1, bn_batches=0, schedule="constant", log_every=10**6)
        with _plain() if plain else nullcontext():
            self.trainer = Trainer(network, settings, _Same(), seed=0, device=DEVICE, bf16=bf16)
        network.train()

    def run(self, count: int) -> list[float]:
        """Do one step, then `count` steps, and return the seconds of each of the latter.

        On a GPU, the steps follow one another without waiting for the GPU, as in a training, and all have their mean time.
        """
        modes: list[AbstractContextManager[None]] = [keep_freed_memory(), cudnn_benchmark()]
        taken = []
        with ExitStack() as stack:
            for mode in [_plain()] if self.plain else modes:
                stack.enter_context(mode)
            for number in range(count + 1):
                started = perf_counter()
                self.trainer.train_step(self.images, self.masks, self.masks.numel(), count_correct=False)
                if DEVICE == "cuda" and number in (0, count):
                    torch.cuda.synchronize()
                taken.append(perf_counter() - started)
        return [sum(taken[1:]) / count] * count if DEVICE == "cuda" else taken[1:]
