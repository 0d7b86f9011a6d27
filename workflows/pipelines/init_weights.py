"""Define the stages that fit VGG-16 to networks of fewer channels or with batch norm, which then start from its weights.

The method is described in `deconvnet.models.init_weights.channel_pruning`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deconvnet.models.architectures import architecture_of_stage
from deconvnet.tracking.initial_model import InitialModel
from infra import storage
from infra.errors import UserError
from infra.runtime.executor import Executor
from infra.runtime.local_executor import available_cpus
from infra.runtime.stages import Stage
from workflows.settings import Settings

if TYPE_CHECKING:
    from deconvnet.tracking.interface import Run

FITTING_VERSION = 3


def fitted_weights_uri(settings: Settings, stage: str) -> str | None:
    """Return the URI of the VGG-16 weights, fitted to the network, from which a training stage starts.

    Args:
        settings: settings of the pipeline.
        stage: name of the training stage: "fcn8s", "stage1" or "stage2".

    Returns:
        URI of a file in the workspace, which need not exist yet. None if the stage does not start from fitted weights.
    """
    fitted = architecture_of_stage(stage).needs_fitted_vgg16(settings.model)
    needed = fitted and not (stage == "stage2" and settings.has_stage1) and not settings.init.from_
    return storage.join(settings.workspace, "start", f"{stage}.npz") if needed else None


def vgg16_digest(uri: str) -> str:
    """Compute the digest of a file of VGG-16's weights. It depends on the content only, so copies have the same digest.

    Args:
        uri: path or URI of the file.

    Returns:
        The digest of the content.

    Raises:
        UserError: if there is no such file.
    """
    try:
        return storage.content_digest(uri)
    except UserError as error:
        raise UserError(
            f"model.vgg16: {error}; `python workflows/download.py vgg16 --to data` fetches it, and an empty value "
            '(--model.vgg16 "") trains from scratch, if train.*.freeze is empty, too'
        ) from None


def check_freeze(settings: Settings, start: InitialModel | None) -> None:
    """Check that no training freezes blocks (`train.*.freeze`) of a network that starts from random weights.

    Args:
        settings: settings of the pipeline.
        start: the networks that `init.from` names. None if it is empty.

    Raises:
        UserError: if one does. The message names all of them.
    """
    if settings.model.vgg16 or (start and start.version):  # a registered model has both networks
        return
    first = ("fcn8s", "stage1" if settings.has_stage1 else "stage2")  # stage 2 starts from stage 1
    random = [stage for stage in first if not start or architecture_of_stage(stage).name not in start.weights]
    if names := [f"train.{stage}.freeze" for stage in random if getattr(settings.train, stage).freeze]:
        options = " ".join(f'--{name} ""' for name in names)
        raise UserError(
            f"{' and '.join(names)} would keep random weights, as neither model.vgg16 nor init.from has trained ones: give "
            f"{options}, or name weights"
        )


def fitting_stages(
    settings: Settings,
    stage: str,
    table: Callable[[], str],
    table_stage: str,
    executor: Executor,
    current_run: Callable[[], "Run"],
) -> list[Stage]:
    """Make the stage that fits VGG-16's weights to the network before a training stage, if one is needed.

    Args:
        settings: settings of the pipeline.
        stage: name of the training stage: "fcn8s", "stage1" or "stage2".
        table: function that returns the URI of the table that the network will be trained on. It is called when the stage runs.
            The channels to keep are chosen by VGG-16's responses to the table's images.
        table_stage: name of the stage that makes `table`.
        executor: executor that fits the weights.
        current_run: function that returns the tracker's run of the stage that is running. It is called when the stage runs.

    Returns:
        A list with the stage, or an empty list if the training stage needs no fitted weights.

    Raises:
        UserError: if the file with VGG-16's weights does not exist.
    """
    out = fitted_weights_uri(settings, stage)
    if out is None or settings.model.vgg16 is None:
        return []
    architecture = architecture_of_stage(stage)

    def run(fingerprint: str) -> dict[str, Any]:
        """Fit VGG-16 on one training node, write the weights, and log how well each fitted layer reproduces the original one.

        Args:
            fingerprint: fingerprint of the stage. Not used.

        Returns:
            The summary of the stage. Its key `r2` has the coefficient of determination (R²) by layer, 1 for a perfect
            reproduction.
        """
        from deconvnet.training.channel_pruning_job import PruningJob, prune_on

        compute = settings.compute
        threads = available_cpus() if settings.executor == "local" and compute.threads is None else compute.worker_threads
        resources = (threads, compute.cpus_per_worker, compute.bf16)
        r2 = prune_on(executor, PruningJob(architecture.name, settings.model, table(), out, settings.seed, *resources))
        current_run().log_metrics({f"r2.{name}": value for name, value in r2.items()})
        return {"r2": r2}

    recipe = {
        "convention": settings.model.convention,
        "input_size": architecture.input_size(settings.model),
        "width": architecture.width(settings.model),
        "vgg16_file": vgg16_digest(settings.model.vgg16),
        "seed": settings.seed,
        **({} if settings.compute.bf16 else {"bf16": False}),
    }
    return [Stage(f"{stage}_start", "VGG-16 fitted to the network", FITTING_VERSION, recipe, (table_stage,), (out,), run)]
