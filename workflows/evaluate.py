"""Measure a workspace's trained models: the five results on a split, as a table, results.json, results.md and pictures.

  python workflows/evaluate.py --config FILE [--split val|dev]

The settings are the pipeline's (`train_pipeline.py`), so segmentation can be tried with other values (`--segment.aggregation sum`);
choose on dev: val is for the final table alone. The report goes to the workspace's `evaluations/SPLIT`.

Exit codes: 0 done; 2 a mistake in the settings, or the models are not there yet.
"""

import sys

from infra import storage
from infra.errors import UserError
from infra.ray_cluster import connected
from infra.tables import COMMIT
from workflows import door
from workflows.pipeline import Pipeline
from workflows.settings import from_arguments, parser


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--split", choices=("val", "dev"), default="val", help="photographs to measure on (default: val)")
    arguments = options.parse_args(argv)
    pipeline = Pipeline(from_arguments(arguments))
    needed = {
        "proposals": storage.join(pipeline.proposals, COMMIT),
        **{name: storage.join(pipeline.model(name), "model.json") for name in ("fcn8s", "stage2")},
    }
    missing = [name for name, uri in needed.items() if not storage.exists(uri)]
    if missing:
        raise UserError(
            f"{pipeline.settings.workspace} has no {' and no '.join(missing)} yet: "
            f"run workflows/train_pipeline.py --config {arguments.config} first"
        )
    report = pipeline.place("evaluations", arguments.split)
    with connected(pipeline.settings.cluster):
        pipeline.measure_proposals(arguments.split, report)
        results = pipeline.evaluate(arguments.split, report)
    print(door.results_table(results))
    print(f"\nreport   {report}")
    return 0


if __name__ == "__main__":
    sys.exit(door.run(main))
