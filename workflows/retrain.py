"""Train again if images or masks have changed, and promote the new model to champion if it is better.

  python workflows/retrain.py --config FILE --workspace DIR      retrain; the settings are those of train_pipeline.py
  python workflows/retrain.py --config FILE --dry-run            print what would be done, and change nothing
  python workflows/retrain.py --config FILE --force              train even if nothing has changed
  python workflows/retrain.py --config FILE --exit-zero-if-locked       for a schedule: exit with code 0 if another run is at work

New and changed images are recognised by their content. Box proposals and training crops are computed only for new and
changed images. Training starts from the champion, which is the version of the registered model that is in use. Then the new
model and the champion are evaluated on the val images. They are compared on the images that were already val images when the
champion was registered: a bootstrap over these images gives the 90 % interval of the rise in mean IoU. The new model becomes
the champion if the lower end of the interval is above retrain.margin, and no class's IoU falls by more than
retrain.max_class_drop.

Each retraining has a folder of its own (a generation) in WORKSPACE/generations. If it is interrupted, the same command
resumes it.

Exit codes: 0 done, or nothing is new; 2 an error in the settings or the data; 3 another command is working in this
workspace (0 with --exit-zero-if-locked); 75 interrupted, with a checkpoint: the same command resumes.
"""

from pathlib import Path

from workflows import cli
from workflows.settings import Settings, add_replace_lost_run, parser


def command_line() -> cli.SettingsParser[Settings]:
    """Return the parser of the command line."""
    command = parser(__doc__ or "")
    command.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    command.add_argument("--force", action="store_true", help="train even if nothing is new")
    command.add_argument(
        "--exit-zero-if-locked",
        action="store_true",
        help="if another command is working in this workspace, exit with code 0 instead of 3",
    )
    add_replace_lost_run(command)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run retrain.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or the data have an error.
        Locked: if another command holds the lock of the workspace, unless --exit-zero-if-locked is given.
        Interrupted: if the run was stopped. The same command resumes it.
    """
    settings, options = command_line().parse_settings(argv)
    from infra.storage.lock import Locked
    from workflows.operations.retraining import log_plan, retrain

    if options.dry_run:
        log_plan(settings, options.force)
        return
    try:
        retrain(settings, Path(options.config).stem, options.force, options.replace_lost_run)
    except Locked as busy:
        if not options.exit_zero_if_locked:
            raise
        print(f"nothing done, because the workspace is locked: {busy}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
