"""Run one retraining, or log what it would do.

Each retraining is called a generation. It has a workspace (folder) of its own below the workspace that the settings name. A lock
allows only one retraining of a workspace at a time.
"""

import logging
from pathlib import Path

from deconvnet.tracking import promotion, registry
from deconvnet.tracking.store import check_store, tracking_uri
from infra import storage
from workflows import cli
from workflows.pipelines import generations, retraining
from workflows.pipelines.generations import Generation
from workflows.pipelines.retraining import Retraining
from workflows.pipelines.workspace import hold_workspace
from workflows.settings import Settings

logger = logging.getLogger(__name__)


def retrain(settings: Settings, config: str, force: bool) -> None:
    """Run one retraining. It ends early if no image or mask is new or changed since the previous retraining.

    Args:
        settings: settings of the pipeline. `workspace` is the folder that holds all generations (retraining runs, each with a
            workspace of its own).
        config: name of the settings file without its folder and extension, for the name of the run in MLflow.
        force: True to train even if nothing is new.

    Raises:
        UserError: if MLflow, the workspace, the data or the cluster can't be used.
        Locked: if another command holds the lock of the workspace.
        Interrupted: if the run was stopped, or another run took over the lock.
    """
    with hold_workspace(settings.workspace, Retraining.command, settings.retrain.lock_minutes) as lock:
        check_store(tracking_uri(settings.workspace, settings.tracking.uri))
        generation = retraining.next_generation(settings, force)
        _run(Retraining(settings, generation, lock), config)


def _run(pipeline: Retraining, config: str) -> None:
    """Run the stages of one retraining, mark it as finished, and delete old generations (earlier retrainings).

    If nothing is new, the folder of this retraining is removed, and the result is only logged.

    Args:
        pipeline: pipeline of the retraining.
        config: name of the settings file without its folder and extension, for the name of the run in MLflow.

    Raises:
        UserError: if the settings, the data or the cluster do not allow the run.
        Interrupted: if the run was stopped, or another run took over the lock.
    """
    generation, base, name = pipeline.generation, pipeline.base, pipeline.settings.tracking.model_name
    logger.info(f"generation {generation.name}: {_start_text(generation, name)}")
    if not generation.forced and retraining.files_unchanged(pipeline):
        _nothing_new(pipeline)
        return
    generations.write(base, generation)
    records = pipeline.run(
        f"retrain {config}",
        lambda stage: stage.name != "prepare" or generation.forced or retraining.content_changed(pipeline),
    )
    if "verdict" not in records:
        generations.remove(base, generation.name)
        generations.mark_unchanged(base, records["prepare"].fingerprint)
        _nothing_new(pipeline)
        return
    pipeline.locks[0].check()
    verdict = records["verdict"].summary
    generations.finish(base, generation, verdict)
    for old in generations.prune(base, verdict["champion"], pipeline.settings.retrain.keep):
        logger.info(f"generation {old} deleted: retrain.keep is {pipeline.settings.retrain.keep}")
    generations.prune_tables_after_run(base, pipeline.store, name, pipeline.locks[0])
    logger.info(cli.results_text(storage.read_json(pipeline.report("results.json"))))
    logger.info(f"\nversion {verdict['version']} is {'' if verdict['promoted'] else 'not '}promoted: {verdict['why']}")
    logger.info(f"champion {name} version {verdict['champion']}" if verdict["champion"] else f"{name} has no champion")
    logger.info(f"report   {pipeline.report()}")
    logger.info(f"MLflow   {cli.mlflow_hint(pipeline.store)}")


def _nothing_new(pipeline: Retraining) -> None:
    """Log that nothing is new since the previous retraining.

    The champion is the version of the model that is in use. If there is no champion, but there is a version with which the
    retraining would have compared its new model, this function makes that version the champion.

    Args:
        pipeline: pipeline of the retraining.

    Raises:
        UserError: if MLflow's registry does not answer.
        Interrupted: if another run took over the lock.
    """
    logger.info(f"Nothing new: the images and masks are those of {pipeline.previous}. (--force trains anyway)")
    name = pipeline.settings.tracking.model_name
    aliases = registry.aliases(pipeline.store, name)
    if registry.CHAMPION in aliases:
        logger.info(f"champion {name} version {aliases[registry.CHAMPION]}")
    elif pipeline.generation.version is not None:
        version = promotion.set_champion(pipeline.own_model(), pipeline.generation.version, pipeline.locks[0])
        logger.info(f"champion {name} version {version}: there was none")
    else:
        logger.info(
            f"{name} has no version yet: train_pipeline.py registers the model of {pipeline.base}, --force trains a new one"
        )


def log_plan(settings: Settings, force: bool) -> None:
    """Log what a retraining would do, as far as this can be told without reading images. Nothing is written.

    Args:
        settings: settings of the pipeline. `workspace` is the folder that holds all generations (retraining runs, each with a
            workspace of its own).
        force: True to plan a training even if nothing is new.

    Raises:
        UserError: if MLflow can't be used, or its registry has models of another workspace under the same name.
    """
    store = tracking_uri(settings.workspace, settings.tracking.uri)
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).exists():
        every = generations.read_all(settings.workspace)
        generation = Generation(generations.new_name(every), retraining.latest_workspace(settings, every), None)
    else:
        check_store(store)
        generation = retraining.next_generation(settings, dry_run=True)
    pipeline = Retraining(settings, generation)
    logger.info(f"generation {generation.name}: {_start_text(generation, settings.tracking.model_name)}")
    if generation.previous is None:
        logger.info("every image is new")
    elif not (force or generation.forced) and retraining.files_unchanged(pipeline):
        logger.info(f"nothing is new since {generation.previous}: a run would stop here (--force trains anyway)")
        return
    elif settings.data.root:
        new, gone = retraining.count_new_and_gone(pipeline)
        logger.info(f"since {generation.previous}: {new:,} new, {gone:,} gone; a run also finds images whose content changed")
    logger.info(cli.plan_text(pipeline.stages.plan()))


def _start_text(generation: Generation, name: str) -> str:
    """Describe the model from which a retraining starts, and the workspace with which its data are compared.

    Args:
        generation: the generation (one retraining run with its workspace).
        name: name of the registered model.

    Returns:
        A phrase for the log, such as "from edeconvnet version 3; compared with WORKSPACE".
    """
    start = f"from {name} version {generation.version}" if generation.version is not None else "no champion to start from"
    return f"{start}; compared with {generation.previous}" if generation.previous else start
