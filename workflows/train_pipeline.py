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

import yaml

from infra import storage
from workflows import cli
from workflows.pipelines.training import Pipeline
from workflows.settings import as_dict, from_arguments, parser


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--dry-run", action="store_true", help="print the settings and the stages, and which would run")
    arguments = options.parse_args(argv)
    settings = from_arguments(arguments)
    pipeline = Pipeline(settings, partial(print, flush=True))
    plan = pipeline.stages.plan()
    if arguments.dry_run:
        from deconvnet.tracking.mlflow_runs import cleaned

        print(yaml.safe_dump(cleaned(as_dict(settings)), sort_keys=False, allow_unicode=True))
        print(cli.planned(plan))
    elif all(p.done for p in plan):
        print(cli.planned(plan))
        print("\nNothing to do: every stage stands.\n")
        _closing(pipeline)
    else:
        pipeline.run(Path(arguments.config).stem)
        _closing(pipeline)
    return 0


def _closing(pipeline: Pipeline) -> None:
    from deconvnet.tracking.mlflow_runs import without_secrets

    results = storage.read_json(pipeline.place("report", "results.json"))
    print(cli.results_table(results))
    rejected = pipeline.rejects()
    if rejected:
        print(f"\n{rejected:,} inputs were set aside; why: {pipeline.place('rejects')}")
    print(f"\nreport   {pipeline.place('report', 'index.html')}")
    print(f"models   {pipeline.place('models')}")
    print(f"MLflow   {cli.how_to_see(without_secrets(pipeline.store))}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
