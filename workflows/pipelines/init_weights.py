"""The stages that prune VGG-16's channels for networks narrower than it (`deconvnet.models.init_weights.channel_pruning`)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deconvnet.models.architectures import architecture_of_stage
from infra import storage
from infra.errors import UserError
from infra.runtime.executor import Executor
from infra.runtime.stages import Stage
from workflows.settings import Settings

if TYPE_CHECKING:
    from deconvnet.tracking.interface import Run

PRUNING_VERSION = 1


def pruned_weights_uri(settings: Settings, stage: str) -> str | None:
    """Return the file of VGG-16's weights, pruned to a network's width, that a training stage starts from.

    Args:
        settings: of the pipeline.
        stage: "fcn8s", "stage1" or "stage2".

    Returns:
        the URI in the workspace; None if the stage starts from anything else.
    """
    pruned = architecture_of_stage(stage).needs_pruned_vgg16(settings.model)
    needed = pruned and stage != "stage2" and not settings.init.from_
    return storage.join(settings.workspace, "start", f"{stage}.npz") if needed else None


def vgg16_digest(uri: str) -> str:
    """Identify a file of VGG-16's weights by its content, so that a copy is the same file. Raises UserError if there is none."""
    try:
        return storage.content_digest(uri)
    except UserError as error:
        raise UserError(
            f"model.vgg16: {error}; `python workflows/download.py vgg16 --to data` fetches it, and an empty value "
            '(--model.vgg16 "") trains from scratch'
        ) from None


def pruning_stages(
    settings: Settings, stage: str, table: str, table_stage: str, executor: Executor, current_run: Callable[[], "Run"]
) -> list[Stage]:
    """Make the stage that writes `pruned_weights_uri` for a training stage.

    Args:
        settings: of the pipeline.
        stage: the training stage.
        table: table that the network will be trained on; VGG-16's responses to it decide which channels stay.
        table_stage: the stage that makes `table`.
        executor: runs the pruning.
        current_run: returns the run that the stage logs to.

    Returns:
        a list of one stage, or of none if no pruned weights are needed.
    """
    out = pruned_weights_uri(settings, stage)
    if out is None or settings.model.vgg16 is None:
        return []
    architecture = architecture_of_stage(stage)

    def run(fingerprint: str) -> dict[str, Any]:
        """Prune on one training node, and log how well each layer is reproduced."""
        from deconvnet.training.channel_pruning_job import PruningJob, prune_on

        cpus = settings.compute.cpus_per_worker
        threads = settings.compute.threads or cpus
        r2 = prune_on(executor, PruningJob(architecture.name, settings.model, table, out, settings.seed, threads, cpus))
        current_run().log_metrics({f"r2.{name}": value for name, value in r2.items()})
        return {"r2": r2}

    recipe = {
        "convention": settings.model.convention,
        "input_size": architecture.input_size(settings.model),
        "width": architecture.width(settings.model),
        "vgg16_file": vgg16_digest(settings.model.vgg16),
        "seed": settings.seed,
    }
    return [Stage(f"{stage}_start", "VGG-16 with fewer channels", PRUNING_VERSION, recipe, (table_stage,), (out,), run)]
