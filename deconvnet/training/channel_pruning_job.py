"""Weights that a narrow network starts from, made of VGG-16's and the photographs it will train on and written to a file."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from deconvnet.models.architectures import ARCHITECTURES
from deconvnet.models.init_weights.channel_pruning import narrow_vgg16
from deconvnet.models.init_weights.vgg16 import read_vgg16, write_vgg16
from deconvnet.models.layers import channels
from deconvnet.models.preprocessing import prepare
from deconvnet.training.dataloader import BatchPlan, ThreadedLoader, open_examples
from infra.errors import UserError
from infra.runtime.device import fast_bf16
from infra.runtime.executor import Executor

if TYPE_CHECKING:
    from deconvnet.settings import ComputeSettings, ModelSettings

MOST_INPUTS = 1000
MOST_BYTES = 2**28
"""Of the narrow network's first maps, which decide how much memory it takes: some six times this, 1 GB in all at least."""
_BATCH = 50


def narrow_start(
    architecture: str,
    model: "ModelSettings",
    compute: "ComputeSettings",
    examples_uri: str,
    out_uri: str,
    seed: int,
    executor: Executor,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Write at `out_uri` (.npz) what `deconvnet.models.init_weights.vgg16.load_vgg16` starts the narrow network of `model` from, on a training node.

    architecture: "deconvnet" or "fcn8s". examples_uri: what it will train on: an `examples` table, or for "fcn8s" the `images`.
    executor: runs it as one piece. `say` hears of each layer. Returns each layer's R² (`deconvnet.models.init_weights.channel_pruning`). Raises UserError where
    model.vgg16 can't be used.
    """
    threads = compute.threads or compute.cpus_per_worker
    work = partial(make_narrow, architecture, model, threads, examples_uri, out_uri, seed)
    fit = {}
    for name, share, line in executor.stream(work, cpus=compute.cpus_per_worker, training=True):
        fit[name] = share
        say(line)
    return fit


def make_narrow(
    architecture: str, model: "ModelSettings", threads: int, examples_uri: str, out_uri: str, seed: int
) -> Iterator[tuple[str, float, str]]:
    """What `narrow_start` has its executor run: yields each layer's name, its R² and a line on it; the file is written after the last."""
    torch.set_num_threads(threads)
    trained = ARCHITECTURES[architecture]
    width, size = trained.width(model), trained.input_size(model)
    if model.vgg16 is None or width >= 1:
        raise ValueError("only VGG-16's weights can be made narrower, for a network narrower than it")
    full = read_vgg16(model.vgg16, model.convention)
    inputs = _sample(examples_uri, size, trained.split("train"), channels(64, width), seed, model.convention)
    tensors: dict[str, torch.Tensor] = {}
    for layer in narrow_vgg16(full, inputs, width, seed, torch.bfloat16 if fast_bf16("cpu") else torch.float32):
        tensors |= layer.tensors()
        of = len(full[layer.name][1])
        yield layer.name, layer.fit, f"{layer.name}: {len(layer.kept)} of {of} channels, R² {layer.fit:.2f} on inputs held out"
    write_vgg16(out_uri, tensors, model.convention)


def _sample(table: str, size: int, split: str | None, first_channels: int, seed: int, convention: str) -> torch.Tensor:
    """Inputs as the first epoch of training has them, prepared; as many as memory allows: (N, 3, S, S)."""
    examples = open_examples(table, size, split)
    count = min(MOST_INPUTS, MOST_BYTES // (4 * size * size * first_channels), examples.total)
    if count < 2:
        raise UserError(
            f"{table} holds too little to make VGG-16 narrower by: add photographs (2 at least), or leave model.vgg16 empty"
        )
    batch = min(_BATCH, count)
    batches = ThreadedLoader(BatchPlan.of(examples, batch, 1, seed)).batches(0, count // batch)
    return prepare(torch.from_numpy(np.concatenate([images for images, _ in batches])), convention)
