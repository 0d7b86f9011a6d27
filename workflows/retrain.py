"""Train again when photographs or labels have changed, and let the new model take the champion's place if it is better.

What is new or changed is found by content; proposals and crops are made for that alone. Training starts from the registered model's
`champion`; both are measured on the same val photographs; the alias moves if mean IoU rises by retrain.margin and no class falls by
more than retrain.max_class_drop. Each run is a generation in WORKSPACE/generations; an interrupted one is gone on with.

  python workflows/retrain.py --config FILE --workspace DIR     the settings are the pipeline's (train_pipeline.py)
  python workflows/retrain.py --config FILE --dry-run           what would happen

Exit codes: 0 done, or nothing is new; 2 a mistake in the settings or the data; 3 another retraining of this workspace is at work;
75 interrupted, with a checkpoint left: run it again to go on.
"""

import getpass
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from deconvnet.tracking import promotion, registry
from deconvnet.tracking.store import check_store, tracking_uri
from infra import storage
from infra.errors import Interrupted
from infra.storage.lock import hold_lock
from workflows import cli
from workflows.pipelines import generations
from workflows.pipelines.generations import Generation
from workflows.pipelines.retraining import Retraining, begin, changed, latest, newcomers, untouched
from workflows.settings import Settings, parser

say = partial(print, flush=True)


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__ or "")
    command.add_argument("--dry-run", action="store_true", help="tell what would happen, and change nothing")
    command.add_argument("--force", action="store_true", help="train even if nothing is new")
    settings, options = command.parse_settings(argv)
    store = tracking_uri(settings.workspace, settings.tracking.uri)
    if options.dry_run:
        _plan(settings, store, options.force)
        return 0
    check_store(store)
    storage.check_writable(settings.workspace)
    lock = storage.join(settings.workspace, "retrain.lock")
    with hold_lock(lock, _user(), 60 * settings.retrain.lock_minutes) as mine:
        pipeline = Retraining(settings, begin(settings, options.force), say, lambda: mine.lost)
        _retrain(pipeline, Path(options.config).stem)
    return 0


def _retrain(pipeline: Retraining, config: str) -> None:
    generation, base, name = pipeline.generation, pipeline.base, pipeline.settings.tracking.model_name
    say(f"generation {generation.name}: {_start(generation, name)}")
    if not generation.forced and untouched(pipeline):
        _nothing_new(pipeline)
        return
    generations.write(base, generation)
    records = pipeline.run(f"retrain {config}", lambda stage: stage.name != "prepare" or generation.forced or changed(pipeline))
    if "verdict" not in records:
        generations.remove(base, generation.name)
        generations.mark_seen(base, records["prepare"].fingerprint)
        _nothing_new(pipeline)
        return
    if pipeline.stopped():
        raise Interrupted(f"the lock of {base} was lost to another run: what that one does counts")
    verdict = records["verdict"].summary
    generations.finish(base, generation, verdict)
    for gone in generations.prune(base, verdict["champion"], pipeline.settings.retrain.keep):
        say(f"generation {gone} deleted: retrain.keep is {pipeline.settings.retrain.keep}")
    say(cli.results_text(storage.read_json(pipeline.place("report", "results.json"))))
    say(f"\nversion {verdict['version']} is {'' if verdict['promoted'] else 'not '}promoted: {verdict['why']}")
    say(f"champion {name} version {verdict['champion']}")
    say(f"report   {pipeline.place('report')}")
    say(f"MLflow   {cli.mlflow_hint(pipeline.store)}")


def _nothing_new(pipeline: Retraining) -> None:
    say(f"Nothing new: the photographs and labels are those of {pipeline.previous}. (--force trains all the same)")
    name = pipeline.settings.tracking.model_name
    aliases = registry.aliases(pipeline.store, name)
    if registry.CHAMPION in aliases:
        say(f"champion {name} version {aliases[registry.CHAMPION]}")
    elif pipeline.generation.version is not None:
        promotion.set_champion(pipeline.store, name, pipeline.generation.version)
        say(f"champion {name} version {pipeline.generation.version}: there was none")


def _plan(settings: Settings, store: str, force: bool) -> None:
    """What a run would do, as far as can be told without reading photographs."""
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).exists():
        generation = Generation(generations.new_name(), latest(settings, generations.read_all(settings.workspace)), None)
    else:
        check_store(store)
        generation = begin(settings)
    pipeline = Retraining(settings, generation, say)
    say(f"generation {generation.name}: {_start(generation, settings.tracking.model_name)}")
    if generation.previous is None:
        say("every photograph is new")
    elif not (force or generation.forced) and untouched(pipeline):
        say(f"nothing is new since {generation.previous}: a run would stop here (--force trains all the same)")
        return
    elif settings.data.root:
        new, gone = newcomers(pipeline)
        say(
            f"since {generation.previous}: {new:,} new, {gone:,} gone; of the others, a run finds those that changed by their content"
        )
    say(cli.plan_text(pipeline.stages.plan()))


def _user() -> str:
    with suppress(OSError, KeyError):  # a container's user need not have a name
        return f"retrain.py of {getpass.getuser()}"
    return "retrain.py"


def _start(generation: Generation, name: str) -> str:
    start = f"from {name} version {generation.version}" if generation.version else "no champion to start from"
    return f"{start}; compared with {generation.previous}" if generation.previous else start


if __name__ == "__main__":
    sys.exit(cli.run(main))
