"""Train DeconvNet and FCN-8s on images with masks, evaluate the five results, and register the ensemble in MLflow.

  python workflows/train_pipeline.py                                      train on generated images: a few minutes
  python workflows/train_pipeline.py --config FILE --data.root DIR        train on your own images, in VOC's layout
  python workflows/train_pipeline.py --config FILE --dry-run              print the settings and the stages that would run
  python workflows/train_pipeline.py --config FILE --data.version 3       train on an earlier version of the images
  python workflows/train_pipeline.py --executor local --tracking.enabled false     run without Ray and without MLflow
  ray job submit -- python workflows/train_pipeline.py --config FILE      run on a Ray cluster

The five results are those of the paper on DeconvNet (Noh et al., ICCV 2015): FCN-8s, DeconvNet and their ensemble, the
last two with and without a CRF. All files are written to the workspace (--workspace DIR). Stages that are already
complete there are skipped, and a run that was stopped or killed resumes from its last checkpoint.

Exit codes: 0 done; 2 an error in the settings or the data; 3 another command is working in this workspace; 75 interrupted,
with a checkpoint: the same command resumes.
"""

from typing import TYPE_CHECKING

from infra.errors import UserError
from workflows import cli
from workflows.settings import Settings, add_replace_lost_run, parser

if TYPE_CHECKING:
    from workflows.pipelines.training import Pipeline


def command_line() -> cli.SettingsParser[Settings]:
    """Return the parser of the command line."""
    command = parser(__doc__ or "")
    command.add_argument("--dry-run", action="store_true", help="print the settings and the stages that would run")
    command.add_argument(
        "--max-minutes",
        type=float,
        metavar="N",
        help="stop after N minutes, with a checkpoint and exit code 75; the same command resumes",
    )
    add_replace_lost_run(command)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run train_pipeline.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or the data have an error.
        Locked: if another command holds the lock of the workspace.
        Interrupted: if the run was stopped. The same command resumes it.
    """
    settings, options = command_line().parse_settings(argv)
    if options.max_minutes is not None and not options.max_minutes >= 0:  # `not … >=` also refuses NaN
        raise UserError(f"--max-minutes {options.max_minutes:g} is not allowed: a number of minutes, 0 or more, is needed")
    from infra.runtime.interrupts import time_limit
    from workflows.pipelines.training import Pipeline

    pipeline = Pipeline(settings, should_stop=time_limit(options.max_minutes))
    pipeline.replace_lost_run = options.replace_lost_run
    if pipeline.run_or_plan(options):
        print(_summary(pipeline))


def _summary(pipeline: "Pipeline") -> str:
    """Return the text that the command prints at the end: the results, and the locations of the report, the models and MLflow.

    Args:
        pipeline: the pipeline, with all stages complete.
    """
    from infra import storage

    lines = [cli.results_text(storage.read_json(pipeline.uri("report", "results.json")))]
    if rejected := pipeline.num_rejects():
        lines.append(f"\n{rejected:,} inputs were rejected; reasons: {pipeline.uri('rejects')}")
    lines.append(f"\nreport   {pipeline.uri('report', 'index.html')}")
    lines.append(f"models   {pipeline.uri('models')}")
    if pipeline.store:
        lines.append(f"MLflow   {cli.mlflow_hint(pipeline.store)}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
