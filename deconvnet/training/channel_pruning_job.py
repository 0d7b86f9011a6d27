"""Fitting of VGG-16's weights to a network that is narrower than VGG-16 (pruning) or has batch norm.

It uses the images that the network will be trained on.
"""

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
from deconvnet.models.layers import VGG16_CONVOLUTIONS, channels
from deconvnet.models.preprocessing import prepare
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.examples import open_examples
from infra.device import fast_bf16
from infra.errors import UserError
from infra.runtime.executor import Executor

if TYPE_CHECKING:
    from deconvnet.settings import ModelSettings

MAX_INPUTS = 1000
"""Largest number of images or crops that are used for pruning."""
MAX_BYTES = 2**28
"""Largest size in bytes of the outputs of the pruned network's first layer, over all inputs. Two inputs are always used.

The job takes about six times as much memory, and at least 1 GB.
"""
_BATCH = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningJob:
    """The description of a job that prunes VGG-16 (reduces it to fewer channels) for a network.

    Attributes:
        architecture: name of the network's architecture, "deconvnet" or "fcn8s".
        model: section `model` of the settings. Its `vgg16` names the file of unpruned weights.
        examples_uri: URI of the table that the network will be trained on: an `examples` table of crops for DeconvNet, an
            `images` table for FCN-8s.
        out_uri: URI of the `.npz` file to write. `deconvnet.models.init_weights.vgg16.load_vgg16` can read it.
        seed: seed for drawing the inputs and the positions at which activations are sampled.
        threads: number of torch threads to compute with.
        cpus: number of CPUs that are reserved for the job on the machine that runs it.
        bf16: whether to compute in bfloat16, on CPUs that are fast at it.
    """

    architecture: str
    model: "ModelSettings"
    examples_uri: str
    out_uri: str
    seed: int
    threads: int = 1
    cpus: int = 1
    bf16: bool = True


def prune_on(executor: Executor, job: PruningJob) -> dict[str, float]:
    """Prune VGG-16 on a training node and write the pruned weights to the file `job.out_uri`.

    This function waits for the result and logs a line for each layer.

    Args:
        executor: the executor that runs the job, as a single task: on Ray, or in local processes.
        job: description of the job.

    Returns:
        For each VGG-16 layer name, R² (the coefficient of determination, at most 1) of the pruned layer's outputs on held-out
        inputs.

    Raises:
        UserError: if the weights or the table can't be used.
    """
    r2 = {}
    for name, value, line in executor.stream(partial(prune, job), cpus=job.cpus, training=True):
        r2[name] = value
        logger.info(f"  {line}")
    return r2


def prune(job: PruningJob) -> Iterator[tuple[str, float, str]]:
    """Fit VGG-16 to a network in this process, and write the weights to the file `job.out_uri` after the last layer.

    At full width no channel is removed. Then fc6 and fc7 are copied to the file, too, if VGG-16's file has them.

    Args:
        job: description of the job.

    Yields:
        For each layer: its name, R² (the coefficient of determination, at most 1) of its outputs on held-out inputs, and a line
        of text for the log.

    Raises:
        UserError: if the weights or the table can't be used.
        ValueError: if the network can start from VGG-16's weights as they are, or the settings name no weights.
    """
    torch.set_num_threads(job.threads)
    architecture, model = ARCHITECTURES[job.architecture], job.model
    if model.vgg16 is None or not architecture.needs_fitted_vgg16(model):
        raise ValueError("there is nothing to fit: the network takes VGG-16's weights as they are, or none")
    width = architecture.width(model)
    full = read_vgg16(model.vgg16, model.convention)
    inputs = _sample_inputs(job, channels(64, width))
    tensors: dict[str, torch.Tensor] = {}
    dtype = torch.bfloat16 if job.bf16 and fast_bf16("cpu") else torch.float32
    for layer in prune_vgg16(full, inputs, width, job.seed, dtype):
        tensors |= layer.tensors()
        total = len(full[layer.name][1])
        kept = len(layer.kept_channels)
        yield layer.name, layer.r2, f"{layer.name}: {kept} of {total} channels kept, R² {layer.r2:.2f} on held-out inputs"
    if width == 1:
        for name in full.keys() - set(VGG16_CONVOLUTIONS):
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = full[name]
    write_vgg16(job.out_uri, tensors, model.convention)


def _sample_inputs(job: PruningJob, first_channels: int) -> torch.Tensor:
    """Make the inputs for pruning from the first examples of the first training epoch: as many as memory allows, and at least 2.

    The examples are augmented as in training.

    Args:
        job: description of the job.
        first_channels: number of channels of the pruned network's first layer. It decides how much memory an input needs.

    Returns:
        float32 tensor of shape (N, 3, S, S) with normalised images. S is the network's input size. N is at most `MAX_INPUTS`.

    Raises:
        UserError: if the table holds fewer than 2 examples.
    """
    architecture = ARCHITECTURES[job.architecture]
    size = architecture.input_size(job.model)
    examples = open_examples(job.examples_uri, size, architecture.split_filter("train"))
    count = min(MAX_INPUTS, max(2, MAX_BYTES // (4 * size * size * first_channels)), examples.total)
    if count < 2:
        raise UserError(
            f"{job.examples_uri} has too few examples to prune VGG-16: add images (at least 2), or leave model.vgg16 empty"
        )
    batch = min(_BATCH, count)
    batches = BatchLoader(BatchPlan.of(examples, batch, 1, job.seed)).batches(0, count // batch)
    return prepare(torch.from_numpy(np.concatenate([images for images, _ in batches])), job.model.convention)
