"""Make another version of a registered model the champion (the version in use), or undo such a move.

  python workflows/promote.py --workspace RUN --to 7             make version 7 the champion
  python workflows/promote.py --workspace RUN --to challenger    make the version that was registered last the champion
  python workflows/promote.py --workspace RUN --back             make the previous champion the champion again
  … --why "bicycles are missed"                                  record a reason
  … --moves                                                      print the recorded moves, and change nothing

The command only moves the alias `champion` in MLflow's registry; it does not compare models, as retrain.py does. Running
servers (serve.py) notice the move within seconds, and switch to the new champion without refusing a request. Each move is
recorded in a tag of the registered model with its time, user, versions and reason. --back undoes the latest move that is not
undone yet, including moves by retrain.py; given again, it undoes the move before. If the environment variable
DECONVNET_NOTIFY_URL names a webhook, a message is sent there.

Exit codes: 0 done; 2 there is no such version, it is the champion already, or there is nothing to undo.
"""

import argparse
from typing import TYPE_CHECKING

from workflows import cli

if TYPE_CHECKING:
    from deconvnet.tracking.champion.moves import Move


def main(argv: list[str] | None = None) -> None:
    """Run promote.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if there is no such version, it is the champion already, nothing is left to undo, or MLflow can't be used.
    """
    options = _parser().parse_args(argv)
    from deconvnet.tracking import registry
    from deconvnet.tracking.champion.moves import move_champion, recorded_moves
    from deconvnet.tracking.store import model_store
    from infra.settings import NotifySettings
    from infra.webhook import open_webhook

    store = model_store(options.workspace, options.tracking_uri)
    if options.moves:
        with registry.registry_client(store, options.model) as client:
            moves = recorded_moves(client, options.model)
        print("\n".join(map(_line, moves)) or f"no move of {options.model}'s champion is recorded")
        return
    webhook = open_webhook(NotifySettings())
    move = move_champion(store, options.model, options.to, options.why)
    done = f"{options.model}: the champion is version {move.version} now (before: {_version_text(move.replaced)})"
    print(done)
    webhook.send(f"{done}; {'undone' if move.back else 'moved'} by {move.who}{f': {move.why}' if move.why else ''}")


def _line(move: "Move") -> str:
    """Describe a recorded move of the alias in one line."""
    undone = " (undoes a move)" if move.back else ""
    return f"{move.when[:16]}  {_version_text(move.replaced)} → version {move.version}{undone}  {move.who}  {move.why}".rstrip()


def _version_text(replaced: int | None) -> str:
    """Name the version that was champion before a move."""
    return "none" if replaced is None else f"version {replaced}"


def _parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", metavar="VERSION", help="number of the version, or an alias such as challenger")
    what.add_argument("--back", action="store_true", help="undo the latest move that is not undone yet")
    what.add_argument("--moves", action="store_true", help="print the recorded moves, oldest first")
    parser.add_argument("--why", default="", metavar="TEXT", help="reason of the move")
    parser.add_argument(
        "--model", default="edeconvnet", metavar="NAME", help="name of the registered model (default: %(default)s)"
    )
    parser.add_argument("--workspace", metavar="DIR", help="workspace whose own MLflow store (SQLite) has the model")
    parser.add_argument(
        "--tracking.uri", dest="tracking_uri", metavar="URI", help="MLflow's server, if MLFLOW_TRACKING_URI names none"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
