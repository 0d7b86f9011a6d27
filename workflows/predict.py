"""Label photographs with a registered model: a mask each, a table of what was found, and pictures if you like.

  python workflows/predict.py --input DIR --output DIR --workspace RUN        the champion that RUN's own MLflow knows
  python workflows/predict.py --input s3://… --output s3://… --overlays true  MLflow by MLFLOW_TRACKING_URI or --tracking.uri
  … --model models:/NAME@ALIAS (or models:/NAME/VERSION)                      another model
  … --dry-run                                                                 what would be done

In OUTPUT, below the photograph's own path: masks/….png (paletted, class ids) and overlays/….jpg; predictions/ and rejects/ are
Parquet tables. Run again it does what is new or changed, or was left by a killed run; another version of the model does all anew.

Exit codes: 0 done; 2 a mistake in the settings or the photographs; 3 another run is writing to the same output; 75 interrupted:
run it again to go on.
"""

import sys
from collections import Counter
from dataclasses import asdict

from deconvnet.datasets.image_folder import ImageFile, list_image_files
from deconvnet.inference import predictions_table
from deconvnet.inference.predictions_table import MASKS, OVERLAYS, REJECTS, STATE, TABLE, Plan, State
from deconvnet.tracking import registry
from deconvnet.tracking.store import model_store
from infra import storage
from infra.errors import Interrupted, UserError
from infra.runtime.parts import check_rejects
from infra.storage import tables
from infra.storage.lock import Lock, hold_lock
from workflows import cli
from workflows.settings import CONFIGS, PredictSettings

LOCK = "_lock"
LOCK_SECONDS = 300.0  # longer than S3 is waited for; one that died on this machine is not waited for
MODEL = "_model"  # where the actors find the model, for the time of a run
_REJECTS_SHOWN = 5


def main(argv: list[str] | None = None) -> int:
    command = cli.SettingsParser(__doc__ or "", PredictSettings, CONFIGS / "predict.yaml")
    command.add_argument("--dry-run", action="store_true", help="print the settings, and what would be done")
    settings, options = command.parse_settings(argv)
    _check_places(settings)
    store = model_store(settings.workspace, settings.tracking.uri)
    photographs = list_image_files(settings.input, leave_out=settings.output)
    version = registry.find(settings.model, store, "model")
    plan = _plan(settings, photographs, version)
    if options.dry_run:
        print(cli.settings_text(settings))
        print(_standing(plan))
        return 0
    if plan.done:
        print(_standing(plan))
    else:
        storage.check_writable(settings.output)
        with hold_lock(storage.join(settings.output, LOCK), "predict.py", LOCK_SECONDS) as mine:
            plan = _plan(settings, photographs, version)  # as it is now that nobody else writes
            print(_standing(plan), flush=True)
            _label(plan, settings, version, store, mine)
    _closing(settings)
    return 0


def _check_places(settings: PredictSettings) -> None:
    """The input must not be what is written."""
    output = settings.output + "/"
    if settings.input == settings.output or any(f"{settings.input}/".startswith(f"{output}{f}/") for f in (MASKS, OVERLAYS)):
        raise UserError(f"output {settings.output} would be written among the photographs of the input: name another folder")


def _plan(settings: PredictSettings, photographs: list[ImageFile], version: registry.Version) -> Plan:
    """What there is to do. Raises UserError where the output holds something else than these photographs' predictions."""
    before = predictions_table.read_state(settings.output)
    if before and before.input != settings.input:
        raise UserError(
            f"output {settings.output} holds the predictions of {before.input}: name another one for {settings.input}"
        )
    made_by = (version.name, version.number, version.id)
    known = before is not None and (before.model, before.model_version, before.model_id) == made_by
    generation = before.generation if before and known else predictions_table.new_generation()
    state = State(settings.input, *made_by, generation)
    return predictions_table.make_plan(photographs, settings.output, state, settings.overlays, settings.max_pixels)


def _standing(plan: Plan) -> str:
    """A line on what there is to do."""
    by = f"{plan.state.model} version {plan.state.model_version}"
    if plan.done:
        return f"nothing to do: all is labelled by {by}"
    new = sum(not item.part for item in plan.items)
    drawn = sum(item.draw and bool(item.part) for item in plan.items)
    what = [f"{new:,} to label by {by}", f"{len(plan.items) - new:,} stand"]
    return f"{len(plan.items):,} photographs: " + ", ".join(what + ([f"{drawn:,} of these to draw"] if drawn else []))


def _label(plan: Plan, settings: PredictSettings, version: registry.Version, store: str, lock: Lock) -> None:
    from deconvnet.inference.batch import label_photographs
    from infra.runtime.executor import Actors
    from infra.runtime.ray_executor import RayExecutor

    output = settings.output
    model = storage.join(output, MODEL)
    with RayExecutor(settings.cluster) as executor:
        gpus = _gpus_per_actor(settings)
        storage.write_json(storage.join(output, STATE), asdict(plan.state))  # before the first mask of its generation
        try:
            storage.remove(model)
            registry.fetch(version, store, model)
            actors = Actors(settings.compute.actors, settings.compute.cpus_per_actor, gpus)
            parts = label_photographs(plan, output, model, executor, actors, max_pixels=settings.max_pixels)
        finally:
            if not lock.lost:  # else the model there is another run's
                storage.remove(model)
    if lock.lost:
        raise Interrupted(f"the lock of {output} was lost to another run: what that one does counts")
    if predictions_table.write_rejects(output, parts):
        print(_rejects(output, parts), file=sys.stderr)
    check_rejects(parts, len(plan.items), settings.max_rejects, "max_rejects")
    predictions_table.finish(plan, output, parts)


def _gpus_per_actor(settings: PredictSettings) -> float:
    """Raises UserError where GPUs are asked for and Ray has none."""
    import ray

    from infra.runtime.cluster import may_grow

    there = ray.cluster_resources().get("GPU", 0)
    if settings.compute.gpu and not there and not may_grow():
        raise UserError("compute.gpu is true, and Ray has no GPU: set it to false, or leave it empty")
    wanted = bool(there) if settings.compute.gpu is None else settings.compute.gpu
    return settings.compute.gpus_per_actor if wanted else 0


def _rejects(output: str, parts: list[tables.Part]) -> str:
    """What was set aside, the commonest reasons with an example each."""
    rejects = [reject for part in parts for reject in part.rejects]
    reasons = Counter(reject.reason for reject in rejects).most_common(_REJECTS_SHOWN)
    examples = {reject.reason: reject.image_id for reject in reversed(rejects)}
    lines = [f"  {count:>6,} × {reason} ({examples[reason]}{', …' if count > 1 else ''})" for reason, count in reasons]
    return "\n".join([f"{len(rejects):,} set aside:", *lines])


def _closing(settings: PredictSettings) -> None:
    output = settings.output
    commit = tables.require_commit(storage.join(output, TABLE))
    found = predictions_table.classes_found(output)
    wide = max([len(each.name) for each in found] + [5])
    print(f"\n  {'class':<{wide}}{'photographs':>13}{'of the pixels':>15}")
    for each in found:
        print(f"  {each.name:<{wide}}{each.photographs:>13,}{100 * each.share:>13.1f} %")
    print(f"\nlabelled     {commit.rows:,} photographs, by {commit.extra['model']}")
    print(f"masks        {storage.join(output, MASKS)}")
    if settings.overlays:
        print(f"overlays     {storage.join(output, OVERLAYS)}")
    print(f"predictions  {storage.join(output, TABLE)}")
    print(f"rejects      {storage.join(output, REJECTS)} ({len(commit.rejects):,})")


if __name__ == "__main__":
    sys.exit(cli.run(main))
