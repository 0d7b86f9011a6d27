"""Run the console command `deconvnet`, whose subcommands are the scripts in workflows/."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from deconvnet import __version__
from workflows.cli.exit_codes import USER_ERROR, run

COMMANDS = (
    "train_pipeline",
    "evaluate",
    "figures",
    "predict",
    "serve",
    "retrain",
    "promote",
    "import_data",
    "export",
    "train_edges",
    "download",
)
"""Names of the scripts, in the order of `deconvnet --help`. A subcommand has the name of its script with "-" in place of "_"."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console command `deconvnet`. `sys.argv` is replaced by the arguments of the subcommand.

    Args:
        argv: the arguments, with the subcommand first. None for the arguments of the process. If empty, the help is printed.

    Returns:
        The exit code: 0 after `--help` or `--version`, 2 if there is no such subcommand, and otherwise the subcommand's own.
    """
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"deconvnet {__version__}")
        return 0
    script = name.replace("-", "_")
    if script not in COMMANDS:
        near = difflib.get_close_matches(name, [command.replace("_", "-") for command in COMMANDS], n=1)
        hint = f"did you mean {near[0]}?" if near else "deconvnet --help lists the commands"
        print(f"error: there is no command {name}; {hint}", file=sys.stderr)
        return USER_ERROR
    module = importlib.import_module(f"workflows.{script}")
    sys.argv = [f"deconvnet {name}", *arguments]  # argparse takes the program's name from here
    return run(module.main, *filter(None, [getattr(module, "INTERRUPTED", None)]))


def _help() -> str:
    """Return the text of `deconvnet --help`. Its list of commands shows the first line of each script's docstring."""
    lines = ["usage: deconvnet COMMAND [options]", "", "commands:"]
    for script in COMMANDS:
        title = (importlib.import_module(f"workflows.{script}").__doc__ or "").partition("\n")[0]
        lines.append(f"  {script.replace('_', '-'):<16}{title}")
    return "\n".join([*lines, "", "deconvnet COMMAND --help shows a command's options; deconvnet --version the version."])


if __name__ == "__main__":
    sys.exit(main())
