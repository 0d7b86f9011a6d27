"""Train an edge detector (a structured forest) for the box proposals, from masks or from the boundaries of BSDS500.

  python workflows/train_edges.py --data.root DIR                 learn from your own masks, in VOC's layout
  python workflows/train_edges.py --bsds DIR                      learn from BSDS500; with --data.root, from both
  python workflows/train_edges.py --config FILE --dry-run         print the settings and the stages that would run

The result is the file edges.yml.gz in the workspace, in OpenCV's format. To use it in a pipeline:

  python workflows/train_pipeline.py --proposals.edge_model WORKSPACE/edges.yml.gz …

The command also compares the new forest with the one that comes with the project. It measures both on the dev images
of your data and on the val images of BSDS500, and prints the table. The same seed gives the same file on any number of
workers.

Exit codes: 0 done; 2 an error in the settings or the data; 3 another command is working in this workspace; 75 interrupted:
the same command resumes with the trees trained so far.
"""

import shlex

from workflows import cli
from workflows.settings import CONFIGS, EdgeSettings


def main(argv: list[str] | None = None) -> None:
    """Run train_edges.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or the data have an error.
        Locked: if another command holds the lock of the workspace.
        Interrupted: if the run was stopped. The same command resumes it.
    """
    command = cli.SettingsParser(__doc__ or "", EdgeSettings, CONFIGS / "train_edges.yaml")
    command.add_argument("--dry-run", action="store_true", help="print the settings and the stages that would run")
    settings, options = command.parse_settings(argv)
    from infra import storage
    from workflows.pipelines.edges import REPORT, EdgeTraining

    training = EdgeTraining(settings)
    if not training.run_or_plan(options):
        return
    print(storage.read_bytes(training.uri(REPORT, "edges.md")).decode())
    print(f"forest   {training.forest}")
    print(f"report   {training.uri(REPORT)}")
    if training.store:
        print(f"MLflow   {cli.mlflow_hint(training.store)}")
    print(f"use it   python workflows/train_pipeline.py --proposals.edge_model {shlex.quote(training.forest)}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
