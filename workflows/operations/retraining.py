"""Run one retraining, or log what it would do.

Each retraining is called a generation. It has a workspace (folder) of its own below its parent, the workspace that the settings
name. A lock allows only one retraining of a workspace at a time. Promotions, refusals, failures and stale data are reported to a
webhook, if the settings or the environment name one.
"""

import logging
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.tracking import promotion, registry
from deconvnet.tracking.champion.moves import recorded_moves
from deconvnet.tracking.store import check_store, tracking_uri
from infra import storage
from infra.errors import Interrupted, UserError, find_user_error
from infra.live_metrics import ReasonLabels
from infra.runtime.stages import Record, read_record
from infra.storage import tables
from infra.storage.lock import Locked
from infra.webhook import Webhook, open_webhook
from workflows import cli
from workflows.operations import data_age, run_metrics
from workflows.operations.run_metrics import Outcome, RunMetrics
from workflows.pipelines import generations, retraining
from workflows.pipelines.generations import Generation
from workflows.pipelines.retraining import CHAMPION_RESULTS, Retraining
from workflows.pipelines.workspace import hold_workspace
from workflows.settings import Settings

logger = logging.getLogger(__name__)


def retrain(settings: Settings, config: str, force: bool, replace_lost_run: bool = False) -> None:
    """Run one retraining. It ends early if no image or mask is new or changed since the previous retraining.

    Args:
        settings: settings of the pipeline. `workspace` is the parent workspace, which holds all generations.
        config: name of the settings file without its folder and extension, for the name of the run in MLflow.
        force: True to train even if nothing is new.
        replace_lost_run: True to take over the lock of a command that died, after waiting for it to expire, see
            `hold_workspace`.

    Raises:
        UserError: if MLflow, the workspace, the data or the cluster can't be used.
        Locked: if another command holds the lock of the workspace.
        Interrupted: if the run was stopped, or another run took over the lock.
    """
    webhook, metrics = open_webhook(settings.notify), RunMetrics(settings.tracking.model_name, settings.notify.metrics_to)
    try:
        minutes = settings.retrain.lock_minutes
        with hold_workspace(settings.workspace, Retraining.command, minutes, replace_lost_run=replace_lost_run) as lock:
            check_store(tracking_uri(settings.workspace, settings.tracking.uri))
            generation = retraining.next_generation(settings, force)
            outcome = _run(Retraining(settings, generation, lock), config, webhook, metrics)
    except Locked:
        raise
    except (Interrupted, KeyboardInterrupt):
        metrics.deliver("interrupted")
        raise
    except Exception as error:
        if _signalled(error):
            metrics.deliver("interrupted")
        else:
            metrics.deliver("failed")
            webhook.send(f"retraining of {settings.workspace} failed: {_failure_text(error)}")
        raise
    metrics.deliver(outcome)


def _signalled(error: BaseException | None) -> bool:
    """Return whether a KeyboardInterrupt (from Ctrl-C or SIGTERM) is in an error's chain of contexts."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _failure_text(error: Exception) -> str:
    """Describe an error that ends a retraining: what the user must correct, or else the class of the error, as it is a bug."""
    known = error if isinstance(error, OSError) else find_user_error(error)
    return str(known) if known else f"a bug ({type(error).__name__}); the log has more"


def _run(pipeline: Retraining, config: str, webhook: Webhook, metrics: RunMetrics) -> Outcome:
    """Run the stages of one retraining, mark it as finished, and delete old generations (earlier retrainings).

    If nothing is new, the folder of this retraining is removed, and nothing is trained. If there is no champion, a version may
    become it (see `_nothing_new`).

    Args:
        pipeline: pipeline of the retraining.
        config: name of the settings file without its folder and extension, for the name of the run in MLflow.
        webhook: gets a message with the decision, and another one if the data are stale.
        metrics: gets the results.

    Returns:
        How the retraining ended.

    Raises:
        UserError: if the settings, the data or the cluster do not allow the run.
        Interrupted: if the run was stopped, or another run took over the lock.
    """
    generation, base, name = pipeline.generation, pipeline.parent, pipeline.settings.tracking.model_name
    logger.info(f"generation {generation.name}: {_start_text(generation, name)}")
    if not generation.forced and retraining.files_unchanged(pipeline):
        return _nothing_new(pipeline, webhook, metrics)
    generations.write(base, generation)
    records = pipeline.run(
        f"retrain {config}",
        lambda stage: stage.name != "prepare" or generation.forced or retraining.content_changed(pipeline),
    )
    if "verdict" not in records:
        generations.remove(base, generation.name)
        retraining.mark_unchanged(pipeline, records["prepare"].fingerprint)
        outcome = _nothing_new(pipeline, webhook, metrics)
        # The stage `prepare` has made a version that differs from the last one only in the times of the files.
        generations.prune_tables_after_run(base, pipeline.store, name, pipeline.locks[0])
        return outcome
    pipeline.locks[0].check()
    decision = records["verdict"].summary
    generations.finish(base, generation, decision)
    title = f"{name} version {decision['version']} of {base}"
    stays = f", version {decision['champion']} stays" if decision["champion"] else ""
    webhook.send(f"{title} is {'the champion' if decision['promoted'] else f'not promoted{stays}'}: {decision['why']}")
    _measure_results(pipeline, metrics)
    _measure_state(pipeline, records["prepare"], webhook, metrics)
    _prune_generations(pipeline)
    generations.prune_tables_after_run(base, pipeline.store, name, pipeline.locks[0])
    logger.info(cli.results_text(storage.read_json(pipeline.report("results.json"))))
    logger.info(f"\nversion {decision['version']} is {'' if decision['promoted'] else 'not '}promoted: {decision['why']}")
    logger.info(f"champion {name} version {decision['champion']}" if decision["champion"] else f"{name} has no champion")
    logger.info(f"report   {pipeline.report()}")
    logger.info(f"MLflow   {cli.mlflow_hint(pipeline.store)}")
    return "promoted" if decision["promoted"] else "refused"


def _prune_generations(pipeline: Retraining) -> None:
    """Delete old generations, but not the one of the version that is in use now. If MLflow does not answer, none is deleted."""
    try:
        champion = registry.aliases(pipeline.store, pipeline.settings.tracking.model_name).get(registry.CHAMPION)
    except UserError as error:
        logger.warning(f"old generations were not deleted: {error}")
        return
    for old in generations.prune(pipeline.parent, champion, pipeline.settings.retrain.keep):
        logger.info(f"generation {old} deleted: retrain.keep is {pipeline.settings.retrain.keep}")


def _measure_results(pipeline: Retraining, metrics: RunMetrics) -> None:
    """Update the metrics of the results: mean IoU of the new model and of the previous champion, and rejects by reason."""
    for role, report in (("champion", CHAMPION_RESULTS), ("challenger", ("results.json",))):
        # A first champion, or one that can't be compared, has no rows.
        rows = storage.read_json(pipeline.report(*report)).get("rows")
        if rows and (value := rows[DECISIVE_RESULT]["mean_iou"]) is not None:
            metrics.update(run_metrics.MEAN_IOU, value, role=role)
    found = Counter((row["stage"], row["reason"]) for row in tables.iter_rows(pipeline.uri("rejects"), ["stage", "reason"]))
    labels, counts = ReasonLabels(), Counter[tuple[str, str]]()
    for (stage, reason), count in found.most_common():  # the most frequent reasons get labels of their own
        counts[stage, labels.label(reason)] += count
    if not counts:  # otherwise the counts of an earlier run would stay
        metrics.update(run_metrics.REJECTS, 0, stage="prepare", reason="none")
    for (stage, label), count in counts.items():
        metrics.update(run_metrics.REJECTS, count, stage=stage, reason=label)


def _measure_state(pipeline: Retraining, prepared: Record, webhook: Webhook, metrics: RunMetrics) -> None:
    """Update the metrics of the champion's age and of the data, and report stale data.

    Args:
        pipeline: pipeline of the retraining.
        prepared: record of the stage `prepare` of the current data.
        webhook: gets a message if no image or mask has changed for `notify.stale_days` days, and again after as many days.
        metrics: gets the numbers.
    """
    try:
        _measure_champion(pipeline.store, pipeline.settings.tracking.model_name, metrics)
    except UserError as error:  # the retraining is complete, and this can wait
        logger.warning(f"the champion's age is not measured: {error}")
    counts, rejects = prepared.summary["counts"], prepared.summary["rejects"]
    for split, count in counts.items():
        metrics.update(run_metrics.IMAGES, count, split=split)
    metrics.update(run_metrics.REJECTED_RATIO, rejects / max(1, rejects + sum(counts.values())))
    metrics.update(run_metrics.REJECTED_LIMIT, pipeline.settings.data.max_rejects)
    now = datetime.now(UTC)
    age = data_age.update(pipeline.parent, prepared.key, now)
    metrics.update(run_metrics.DATA_SINCE, datetime.fromisoformat(age.since).timestamp())
    if pipeline.settings.data.root and age.report_is_due(pipeline.settings.notify.stale_days, now):
        days = f"for {age.days(now):,.0f} days, since {age.since[:10]} (notify.stale_days)"
        logger.warning(f"no image or mask is new or changed {days}")
        webhook.send(f"stale data in {pipeline.settings.data.root}: no image or mask is new or changed {days}")
        data_age.mark_reported(pipeline.parent, age, now)


def _measure_champion(store: str, name: str, metrics: RunMetrics) -> None:
    """Update the metrics of the champion: its version number, and the time since which it is in use.

    Args:
        store: URI of the MLflow store.
        name: name of the registered model.
        metrics: gets the version number if there is a champion, and the time if the move that made it champion is recorded.

    Raises:
        UserError: if the registry does not answer.
    """
    champion = registry.aliases(store, name).get(registry.CHAMPION)
    if champion is None:
        return
    metrics.update(run_metrics.CHAMPION_VERSION, champion)
    with registry.registry_client(store, name) as client:
        moves = recorded_moves(client, name)
    if moves and moves[-1].version == champion:
        metrics.update(run_metrics.CHAMPION_SINCE, datetime.fromisoformat(moves[-1].when).timestamp())


def _nothing_new(pipeline: Retraining, webhook: Webhook, metrics: RunMetrics) -> Outcome:
    """Log that nothing is new since the previous retraining.

    The champion is the version of the model that is in use. If there is no champion, but there is a version with which the
    retraining would have compared its new model, this function makes that version the champion.

    Args:
        pipeline: pipeline of the retraining.
        webhook: gets a message of the promotion, and one if the data are stale.
        metrics: gets the champion's age, and what is known of the data.

    Returns:
        How the retraining ended: "unchanged".

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
        version = promotion.set_champion(pipeline.workspace_model(), pipeline.generation.version, pipeline.locks[0])
        logger.info(f"champion {name} version {version}: there was none")
        webhook.send(f"{name} version {version} of {pipeline.parent} is the champion: there was none")
    elif registry.CHALLENGER in aliases:
        refused = aliases[registry.CHALLENGER]
        logger.info(
            f"{name} has no champion, and version {refused} was refused: promote.py --to {refused} makes it the champion anyway, "
            "retrain.py --force trains a new one"
        )
    else:
        logger.info(
            f"{name} has no version yet: train_pipeline.py registers the model of {pipeline.parent}, --force trains a new one"
        )
    if pipeline.previous and (record := read_record(pipeline.previous, "prepare")):
        _measure_state(pipeline, record, webhook, metrics)
    return "unchanged"


def log_plan(settings: Settings, force: bool) -> None:
    """Log what a retraining would do, as far as this is known without reading images. Nothing is written.

    Args:
        settings: settings of the pipeline. `workspace` is the parent workspace, which holds all generations.
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
        generation: the generation.
        name: name of the registered model.

    Returns:
        A phrase for the log, such as "from edeconvnet version 3; compared with WORKSPACE".
    """
    start = f"from {name} version {generation.version}" if generation.version is not None else "no champion to start from"
    return f"{start}; compared with {generation.previous}" if generation.previous else start
