"""The commands of this project, one script each, and the pipelines and operations that they run.

If this package is imported by a command, it installs handlers for SIGTERM and Ctrl-C that end the process with exit code 75,
until `workflows.cli.run` replaces them. They cover the seconds in which large libraries such as torch are imported, so the
scripts import this package before all modules that load such a library.
"""

import multiprocessing
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def _exit_on_signal(signum: int, frame: Any) -> None:
    """Handle SIGTERM or SIGINT: print that the command was interrupted, and exit with code 75.

    Args:
        signum: number of the signal. Not used.
        frame: stack frame that the signal interrupted. Not used.
    """
    print("\ninterrupted: nothing was started yet", file=sys.stderr)
    raise SystemExit(75)


def _is_command() -> bool:
    """Return whether this is the main process and the main thread of a command.

    A command is a script of this folder, started by its path or by `python -m`, or the console command `deconvnet`.
    """
    program = Path(sys.argv[0])
    script = program.name in ("deconvnet", "-m") or program.resolve().parent == Path(__file__).parent
    return script and multiprocessing.parent_process() is None and threading.current_thread() is threading.main_thread()


if _is_command():
    for _signum in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(_signum) is not signal.SIG_IGN:  # a shell that starts a job in the background ignores SIGINT
            signal.signal(_signum, _exit_on_signal)
