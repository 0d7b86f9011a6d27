"""Train again when photographs or labels have changed, and let the new model take the champion's place if it is better.

What is new or changed is found by content; proposals and crops are made for that alone. Training starts from the registered model's
`champion`; both are measured on the same val photographs; the alias moves if mean IoU rises by retrain.margin and no class falls by
more than retrain.max_class_drop. Each run is a generation in WORKSPACE/generations; an interrupted one is resumed.

  python workflows/retrain.py --config FILE --workspace DIR     the settings are the pipeline's (train_pipeline.py)
  python workflows/retrain.py --config FILE --dry-run           what would happen

Exit codes: 0 done, or nothing is new; 2 a mistake in the settings or the data; 3 another retraining of this workspace is at work;
75 interrupted, with a checkpoint left: run it again to go on.
"""

import getpass
import logging
import sys
from contextlib import suppress
from pathlib import Path

from deconvnet.tracking import promotion, registry
from deconvnet.tracking.store import check_store, tracking_uri
from infra import storage
from infra.errors import Interrupted
from infra.storage.lock import hold_lock
from workflows import cli
from workflows.pipelines import generations, retraining
from workflows.pipelines.generations import Generation
from workflows.pipelines.retraining import Retraining
from workflows.settings import Settings, parser

logger = logging.getLogger("workflows.retrain")


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns its exit code."""
    command = parser(__doc__ or "")
    command.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
    command.add_argument("--force", action="store_true", help="train even if nothing is new")
    settings, options = command.parse_settings(argv)
    store = tracking_uri(settings.workspace, settings.tracking.uri)
    if options.dry_run:
        _log_plan(settings, store, options.force)
        return 0
    check_store(store)
    storage.check_writable(settings.workspace)
    lock = storage.join(settings.workspace, "retrain.lock")
    with hold_lock(lock, _user(), 60 * settings.retrain.lock_minutes) as mine:
        generation = retraining.next_generation(settings, options.force)
        _retrain(Retraining(settings, generation, lambda: mine.lost), Path(options.config).stem)
    return 0


def _retrain(pipeline: Retraining, config: str) -> None:
    """Run a generation to its end; it ends after `prepare` if nothing is new."""
    generation, base, name = pipeline.generation, pipeline.base, pipeline.settings.tracking.model_name
    logger.info(f"generation {generation.name}: {_start(generation, name)}")
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
    if pipeline.should_stop():
        raise Interrupted(f"the lock of {base} was lost to another run: what that one does counts")
    verdict = records["verdict"].summary
    generations.finish(base, generation, verdict)
    for gone in generations.prune(base, verdict["champion"], pipeline.settings.retrain.keep):
        logger.info(f"generation {gone} deleted: retrain.keep is {pipeline.settings.retrain.keep}")
    logger.info(cli.results_text(storage.read_json(pipeline.report("results.json"))))
    logger.info(f"\nversion {verdict['version']} is {'' if verdict['promoted'] else 'not '}promoted: {verdict['why']}")
    logger.info(f"champion {name} version {verdict['champion']}")
    logger.info(f"report   {pipeline.report()}")
    logger.info(f"MLflow   {cli.mlflow_hint(pipeline.store)}")


def _nothing_new(pipeline: Retraining) -> None:
    """Say that nothing is new, and make the version to beat the champion if there is none."""
    logger.info(f"Nothing new: the images and masks are those of {pipeline.previous}. (--force trains all the same)")
    name = pipeline.settings.tracking.model_name
    aliases = registry.aliases(pipeline.store, name)
    if registry.CHAMPION in aliases:
        logger.info(f"champion {name} version {aliases[registry.CHAMPION]}")
    elif pipeline.generation.version is not None:
        promotion.set_champion(pipeline.store, name, pipeline.generation.version)
        logger.info(f"champion {name} version {pipeline.generation.version}: there was none")


def _log_plan(settings: Settings, store: str, force: bool) -> None:
    """Say what a run would do, as far as that is known without reading images."""
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).exists():
        previous = retraining.latest_workspace(settings, generations.read_all(settings.workspace))
        generation = Generation(generations.new_name(), previous, None)
    else:
        check_store(store)
        generation = retraining.next_generation(settings)
    pipeline = Retraining(settings, generation)
    logger.info(f"generation {generation.name}: {_start(generation, settings.tracking.model_name)}")
    if generation.previous is None:
        logger.info("every image is new")
    elif not (force or generation.forced) and retraining.files_unchanged(pipeline):
        logger.info(f"nothing is new since {generation.previous}: a run would stop here (--force trains all the same)")
        return
    elif settings.data.root:
        new, gone = retraining.count_new_and_gone(pipeline)
        logger.info(
            f"since {generation.previous}: {new:,} new, {gone:,} gone; of the others, a run finds those that changed by their content"
        )
    logger.info(cli.plan_text(pipeline.stages.plan()))


def _user() -> str:
    """Name this run in the lock file."""
    with suppress(OSError, KeyError):  # a container's user need not have a name
        return f"retrain.py of {getpass.getuser()}"
    return "retrain.py"


def _start(generation: Generation, name: str) -> str:
    """Say what a generation starts from."""
    start = f"from {name} version {generation.version}" if generation.version else "no champion to start from"
    return f"{start}; compared with {generation.previous}" if generation.previous else start


if __name__ == "__main__":
    sys.exit(cli.run(main))
