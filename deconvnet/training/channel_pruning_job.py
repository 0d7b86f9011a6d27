"""Initial weights of a network narrower than VGG-16: VGG-16 pruned on the images or crops that the network will train on."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from deconvnet.models.architectures import ARCHITECTURES
from deconvnet.models.init_weights.channel_pruning import prune_vgg16
from deconvnet.models.init_weights.vgg16 import read_vgg16, write_vgg16
from deconvnet.models.layers import channels
from deconvnet.models.preprocessing import prepare
from deconvnet.training.dataloader import BatchPlan, ThreadedLoader, open_examples
from infra.device import fast_bf16
from infra.errors import UserError
from infra.runtime.executor import Executor

if TYPE_CHECKING:
    from deconvnet.settings import ModelSettings

MOST_INPUTS = 1000
"""Images or crops that responses are computed for, at most."""
MOST_BYTES = 2**28
"""Size of the pruned network's first maps for all inputs, at most. Memory used is about six times this, and at least 1 GB."""
_BATCH = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningJob:
    """What VGG-16 is pruned for.

    Attributes:
        architecture: "deconvnet" or "fcn8s".
        model: settings of the networks; `vgg16` names the full weights.
        examples_uri: table that the network will train on: `examples`, or `images` for FCN-8s.
        out_uri: `.npz` file that is written, for `deconvnet.models.init_weights.vgg16.load_vgg16`.
        seed: of the inputs and the sampled positions.
        threads: torch threads to compute with.
        cpus: CPUs that the executor reserves for the job.
    """

    architecture: str
    model: "ModelSettings"
    examples_uri: str
    out_uri: str
    seed: int
    threads: int = 1
    cpus: int = 1


def prune_on(executor: Executor, job: PruningJob) -> dict[str, float]:
    """Prune VGG-16 on a training node and write the file `job.out_uri`; logs a line for each layer.

    Args:
        executor: runs the job as one piece of work.
        job: what to prune, and for which network.

    Returns:
        R² of each layer's responses on held-out inputs, by VGG-16's layer names.

    Raises:
        UserError: if the weights or the table can't be used.
    """
    r2 = {}
    for name, value, line in executor.stream(partial(prune, job), cpus=job.cpus, training=True):
        r2[name] = value
        logger.info(f"  {line}")
    return r2


def prune(job: PruningJob) -> Iterator[tuple[str, float, str]]:
    """Prune VGG-16 in this process and write the file `job.out_uri` after the last layer.

    Args:
        job: what to prune, and for which network.

    Yields:
        Each layer's name, its R² and a line that describes it.

    Raises:
        UserError: if the weights or the table can't be used.
    """
    torch.set_num_threads(job.threads)
    architecture, model = ARCHITECTURES[job.architecture], job.model
    if model.vgg16 is None or not architecture.needs_pruned_vgg16(model):
        raise ValueError("only VGG-16's weights can be pruned, for a network narrower than it")
    width = architecture.width(model)
    full = read_vgg16(model.vgg16, model.convention)
    inputs = _sample_inputs(job, channels(64, width))
    tensors: dict[str, torch.Tensor] = {}
    for layer in prune_vgg16(full, inputs, width, job.seed, torch.bfloat16 if fast_bf16("cpu") else torch.float32):
        tensors |= layer.tensors()
        total = len(full[layer.name][1])
        kept = len(layer.kept_channels)
        yield layer.name, layer.r2, f"{layer.name}: {kept} of {total} channels kept, R² {layer.r2:.2f} on held-out inputs"
    write_vgg16(job.out_uri, tensors, model.convention)


def _sample_inputs(job: PruningJob, first_channels: int) -> torch.Tensor:
    """Make as many prepared inputs (N, 3, S, S) as memory allows, the first of those that the first epoch of training has."""
    architecture = ARCHITECTURES[job.architecture]
    size = architecture.input_size(job.model)
    examples = open_examples(job.examples_uri, size, architecture.split("train"))
    count = min(MOST_INPUTS, MOST_BYTES // (4 * size * size * first_channels), examples.total)
    if count < 2:
        raise UserError(
            f"{job.examples_uri} holds too little to prune VGG-16 by: add images (2 at least), or leave model.vgg16 empty"
        )
    batch = min(_BATCH, count)
    batches = ThreadedLoader(BatchPlan.of(examples, batch, 1, job.seed)).batches(0, count // batch)
    return prepare(torch.from_numpy(np.concatenate([images for images, _ in batches])), job.model.convention)
