"""The stages in which VGG-16 is made as narrow as the networks that start from it (`deconvnet.models.init_weights.channel_pruning`)."""

from typing import TYPE_CHECKING, Any

from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage
from workflows.settings import Settings, as_dict

if TYPE_CHECKING:
    from workflows.pipelines.training import Pipeline

NARROW_VERSION = 1


def start_of(settings: Settings, stage: str) -> str | None:
    """Where VGG-16 as narrow as the network of a training stage lies in the workspace; None where it starts from anything else."""
    model = settings.model
    made = model.vgg16 and _width(settings, stage) < 1 and stage != "stage2" and not settings.init.from_
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
    whole = stage == "fcn8s"
    model = as_dict(s.model, ("convention", "fcn_input_size" if whole else "input_size"))
    model["width"] = _width(s, stage)

    def run(fingerprint: str) -> dict[str, Any]:
        from deconvnet.training.channel_pruning_job import narrow_start

        architecture, nodes = "fcn8s" if whole else "deconvnet", s.cluster.selector("training_nodes")
        fit = narrow_start(architecture, s.model, s.compute, table, out, s.seed, nodes, lambda line: pipeline.say(f"  {line}"))
        pipeline.mlflow_run.log_metrics({f"fit.{name}": value for name, value in fit.items()})
        return {"fit": fit}

    settings = {**model, "vgg16_file": weights_stamp(s.model.vgg16), "seed": s.seed}
    return [Stage(f"{stage}_start", "VGG-16 made narrower", NARROW_VERSION, settings, (table_stage,), (out,), run)]


def _width(settings: Settings, stage: str) -> float:
    return (settings.model.fcn_width or settings.model.width) if stage == "fcn8s" else settings.model.width
