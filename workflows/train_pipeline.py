"""Train DeconvNet and FCN-8s from a folder of labelled photographs, evaluate the five results, register the ensemble.

Stages that already stand in the workspace are not run again, and a killed run continues where it was.

  python workflows/train_pipeline.py                                        generated data, a few minutes
  python workflows/train_pipeline.py --config FILE --data.root DIR          your own photographs, in VOC's layout
  python workflows/train_pipeline.py --config FILE --dry-run                what would run, and with what settings
  ray job submit -- python workflows/train_pipeline.py --config FILE        the same on a cluster

Exit codes: 0 done; 2 a mistake in the settings or the data; 75 interrupted, with a checkpoint left: run it again to go on.
"""

import sys
from functools import partial
from pathlib import Path

from infra import storage
from workflows import cli
from workflows.pipelines.training import Pipeline
from workflows.settings import parser


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__ or "")
    command.add_argument("--dry-run", action="store_true", help="print the settings and the stages, and which would run")
    settings, options = command.parse_settings(argv)
    pipeline = Pipeline(settings, partial(print, flush=True))
    plan = pipeline.stages.plan()
    if options.dry_run:
        print(cli.settings_text(settings))
        print(cli.plan_text(plan))
    elif all(p.done for p in plan):
        print(cli.plan_text(plan))
        print("\nNothing to do: every stage stands.\n")
        _closing(pipeline)
    else:
        pipeline.run(Path(options.config).stem)
        _closing(pipeline)
    return 0


def _closing(pipeline: Pipeline) -> None:
    results = storage.read_json(pipeline.place("report", "results.json"))
    print(cli.results_text(results))
    rejected = pipeline.rejects()
    if rejected:
        print(f"\n{rejected:,} inputs were set aside; why: {pipeline.place('rejects')}")
    print(f"\nreport   {pipeline.place('report', 'index.html')}")
    print(f"models   {pipeline.place('models')}")
    print(f"MLflow   {cli.mlflow_hint(pipeline.store)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
