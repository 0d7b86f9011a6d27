"""Train again when images or masks have changed, and promote the new model to champion if it is better.

Images that are new or changed are found by their content; only for them are proposals and crops made again. Training starts from the
`champion` of the registered model. Both are evaluated on the same val images; the new model becomes the champion if its mean IoU is
higher by retrain.margin or more and no class's IoU falls by more than retrain.max_class_drop. Each run is a generation in
WORKSPACE/generations; an interrupted generation is resumed.

  python workflows/retrain.py --config FILE --workspace DIR     the settings are those of train_pipeline.py
  python workflows/retrain.py --config FILE --dry-run           print what would be done

Exit codes: 0 done, or nothing is new; 2 an error in the settings or the data; 3 another retraining of this workspace is running;
75 interrupted, with a checkpoint: the same command resumes.
"""

import sys
from pathlib import Path

from workflows import cli
from workflows.settings import parser


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns its exit code."""
    command = parser(__doc__ or "")
    command.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    command.add_argument("--force", action="store_true", help="train even if nothing is new")
    settings, options = command.parse_settings(argv)
    from workflows.operations.retraining import log_plan, retrain

    if options.dry_run:
        log_plan(settings, options.force)
    else:
        retrain(settings, Path(options.config).stem, options.force)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
