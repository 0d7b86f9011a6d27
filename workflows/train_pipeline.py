"""Train DeconvNet and FCN-8s from a folder of labelled photographs, evaluate the five results, register the ensemble.

Stages that already stand in the workspace are not run again, and a killed run continues where it was.

  python workflows/train_pipeline.py                                        generated data, a few minutes
  python workflows/train_pipeline.py --config FILE --data.root DIR          your own photographs, in VOC's layout
  python workflows/train_pipeline.py --config FILE --dry-run                what would run, and with what settings
  ray job submit -- python workflows/train_pipeline.py --config FILE        the same on a cluster

Exit codes: 0 done; 2 a mistake in the settings or the data; 75 interrupted, with a checkpoint left: run it again to go on.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from infra import storage
from infra.stages import Planned, Record, Stage
from workflows import door
from workflows.pipeline import RUN_FILE, Pipeline
from workflows.settings import as_dict, from_arguments, parser


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--dry-run", action="store_true", help="print the settings and the stages, and which would run")
    arguments = options.parse_args(argv)
    settings = from_arguments(arguments)
    pipeline = Pipeline(settings)
    plan = pipeline.stages.plan()
    if arguments.dry_run:
        from deconvnet.tracking import cleaned

        print(yaml.safe_dump(cleaned(as_dict(settings)), sort_keys=False, allow_unicode=True))
        print(_planned(plan))
    elif all(p.done for p in plan):
        print(_planned(plan))
        print("\nNothing to do: every stage stands.\n")
        _closing(pipeline)
    else:
        _run(pipeline, Path(arguments.config).stem)
        _closing(pipeline)
    return 0


def _planned(plan: list[Planned]) -> str:
    lines = [f"  {p.stage.name:<10} {p.stage.title:<32} {_standing(p)}" for p in plan]
    return "\n".join(["stages:", *lines])


def _standing(planned: Planned) -> str:
    return f"stands ({planned.record.seconds:,.0f} s when it ran)" if planned.record else "would run"


def _run(pipeline: Pipeline, config: str) -> None:
    from deconvnet.tracking import Tracker
    from deconvnet.train_job import check_resources
    from infra.ray_cluster import connected

    settings = pipeline.settings
    tracker = Tracker(pipeline.store, settings.tracking.experiment)
    run_file = pipeline.place(RUN_FILE)
    known = storage.read_json(run_file).get("mlflow_run_id") if storage.exists(run_file) else None
    stages = pipeline.stages.stages
    tags = {"config": config, "workspace": settings.workspace}
    with (
        connected(settings.cluster),
        tracker.pipeline(config, as_dict(settings), tags, resume_run_id=known) as parent,
    ):
        storage.write_json(run_file, {"mlflow_run_id": parent.run_id})
        check_resources(settings.compute, print)  # now, rather than after an hour of mining

        def around(stage: Stage, fingerprint: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            print(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.name}: {stage.title}", flush=True)
            with parent.stage(stage.name, fingerprint, dict(stage.settings)) as child:
                pipeline.mlflow_run = child
                return run()

        def skipped(stage: Stage, record: Record) -> None:
            print(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.name}: stands, not run again", flush=True)

        records = pipeline.stages.run(around, skipped)
        parent.log_metrics({f"val.mean_iou.{name}": value for name, value in records["evaluate"].summary["mean_iou"].items()})
        parent.log_metrics({f"seconds.{name}": record.seconds for name, record in records.items()})


def _closing(pipeline: Pipeline) -> None:
    from deconvnet.tracking import without_secrets

    results = storage.read_json(pipeline.place("report", "results.json"))
    print(door.results_table(results))
    rejected = pipeline.rejects()
    if rejected:
        print(f"\n{rejected:,} inputs were set aside; why: {pipeline.place('rejects')}")
    print(f"\nreport   {pipeline.place('report')}: results.md, results.json, comparison.png, iou_by_class.png")
    print(f"models   {pipeline.place('models')}")
    print(f"MLflow   {door.how_to_see(without_secrets(pipeline.store))}")


if __name__ == "__main__":
    sys.exit(door.run(main))
