"""The console command `deconvnet`: each subcommand is one of the scripts in workflows/."""

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from workflows.cli.exit_codes import USER_ERROR, run

COMMANDS = (
    "train_pipeline",
    "evaluate",
    "figures",
    "predict",
    "serve",
    "retrain",
    "import_data",
    "train_edges",
    "download",
)
"""The scripts, in the order of `deconvnet --help`. Subcommands have - for _."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `deconvnet`.

    Args:
        argv: the arguments, the subcommand first; None: those of the process.

    Returns:
        The exit code of the subcommand.
    """
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"deconvnet {version('deconvnet')}")
        return 0
    script = name.replace("-", "_")
    if script not in COMMANDS:
        print(f"error: there is no command {name}; deconvnet --help lists the commands", file=sys.stderr)
        return USER_ERROR
    module = importlib.import_module(f"workflows.{script}")
    sys.argv = [f"deconvnet {name}", *arguments]  # argparse takes the program's name from here
    return run(module.main, *filter(None, [getattr(module, "INTERRUPTED", None)]))


def _help() -> str:
    """The commands, with the first line of each script's description."""
    lines = ["usage: deconvnet COMMAND [options]", "", "commands:"]
    for script in COMMANDS:
        title = (importlib.import_module(f"workflows.{script}").__doc__ or "").partition("\n")[0]
        lines.append(f"  {script.replace('_', '-'):<16}{title}")
    return "\n".join([*lines, "", "deconvnet COMMAND --help shows a command's options; deconvnet --version the version."])


if __name__ == "__main__":
    sys.exit(main())
