"""The stages in which VGG-16 is made as narrow as the networks that start from it (`deconvnet.models.init_weights.channel_pruning`)."""

from typing import TYPE_CHECKING, Any

from deconvnet.models.architectures import architecture_of_stage
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage
from workflows.settings import Settings

if TYPE_CHECKING:
    from workflows.pipelines.training import Pipeline

NARROW_VERSION = 1


def start_of(settings: Settings, stage: str) -> str | None:
    """Where VGG-16 as narrow as the network of a training stage lies in the workspace; None where it starts from anything else."""
    model = settings.model
    pruned = architecture_of_stage(stage).needs_pruned_vgg16(model)
    made = pruned and stage != "stage2" and not settings.init.from_
    return storage.join(settings.workspace, "start", f"{stage}.npz") if made else None


def weights_stamp(uri: str) -> str:
    """What tells the file of VGG-16's weights from another. Raises UserError where there is none."""
    try:
        return storage.version_token(uri)
    except UserError as error:
        raise UserError(
            f"model.vgg16: {error}; `python workflows/download.py vgg16 --to data` fetches it, and an empty value "
            '(--model.vgg16 "") trains from scratch'
        ) from None


def start_stages(pipeline: "Pipeline", stage: str, table: str, table_stage: str) -> list[Stage]:
    """The stage that makes `start_of(stage)` of the examples `table`, which `table_stage` made; none where it isn't needed."""
    s = pipeline.settings
    out = start_of(s, stage)
    if out is None or s.model.vgg16 is None:
        return []
    architecture = architecture_of_stage(stage)
    model = {
        "convention": s.model.convention,
        "input_size": architecture.input_size(s.model),
        "width": architecture.width(s.model),
    }

    def run(fingerprint: str) -> dict[str, Any]:
        from deconvnet.training.channel_pruning_job import PruningJob, prune_on

        threads, cpus = s.compute.threads or s.compute.cpus_per_worker, s.compute.cpus_per_worker
        r2 = prune_on(pipeline.executor, PruningJob(architecture.name, s.model, table, out, s.seed, threads, cpus))
        pipeline.mlflow_run.log_metrics({f"r2.{name}": value for name, value in r2.items()})
        return {"r2": r2}

    settings = {**model, "vgg16_file": weights_stamp(s.model.vgg16), "seed": s.seed}
    return [Stage(f"{stage}_start", "VGG-16 made narrower", NARROW_VERSION, settings, (table_stage,), (out,), run)]
