"""Learn an edge detector, a structured forest, from photographs and their masks, for the proposals to stand on.

  python workflows/train_edges.py --data.root DIR                     your own masks (VOC's layout)
  python workflows/train_edges.py --bsds DIR                          BSDS500's human boundaries; with --data.root, both
  python workflows/train_edges.py --config FILE --dry-run             what would run, and with what settings
  python workflows/train_pipeline.py --proposals.edge_model WORKSPACE/edges.yml.gz …      used from then on

The file is OpenCV's own format. What it is worth is measured on the data's dev photographs and BSDS500's val, beside the forest that
comes with the package. The same seed gives the same file on any number of workers.

Exit codes: 0 done; 2 a mistake in the settings or the data; 75 interrupted: run it again to go on from the trees that are grown.
"""

import sys
from functools import partial
from pathlib import Path

from infra import storage
from workflows import cli
from workflows.pipelines.edges import REPORT, EdgeTraining
from workflows.settings import CONFIGS, EdgeSettings


def main(argv: list[str] | None = None) -> int:
    command = cli.SettingsParser(__doc__ or "", EdgeSettings, CONFIGS / "train_edges.yaml")
    command.add_argument("--dry-run", action="store_true", help="print the settings and the stages, and which would run")
    settings, options = command.parse_settings(argv)
    training = EdgeTraining(settings, partial(print, flush=True))
    plan = training.stages.plan()
    if options.dry_run:
        print(cli.settings_text(settings))
        print(cli.plan_text(plan))
        return 0
    if all(p.done for p in plan):
        print(cli.plan_text(plan))
        print("\nNothing to do: every stage stands.\n")
    else:
        training.run(Path(options.config).stem)
    print(storage.read_bytes(training.place(REPORT, "edges.md")).decode())
    print(f"forest   {training.forest}")
    print(f"report   {training.place(REPORT)}")
    print(f"MLflow   {cli.mlflow_hint(training.store)}")
    print(f"use it   python workflows/train_pipeline.py --proposals.edge_model {training.forest}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
