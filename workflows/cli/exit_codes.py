"""Run a command so that an error becomes a line on stderr and an exit code instead of a traceback."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from infra.errors import Interrupted, find_user_error
from infra.redaction import without_secrets
from infra.storage.lock import Locked
from workflows.cli.logs import configure_logging

USER_ERROR = 2
"""Exit code for an error that the user must correct in the settings, the data or the environment."""
LOCKED = 3
"""Exit code if another run holds the lock of the same workspace or output folder."""
INTERRUPTED = 75
"""Exit code after an interruption, EX_TEMPFAIL of sysexits.h. The same command resumes from the work that is complete."""


def run(main: Callable[[], None], interrupted: str = "the same command resumes from what is complete") -> int:
    """Run a command with logging configured. An expected error becomes a line on stderr, without secrets, and an exit code.

    Meanwhile, SIGTERM has the same effect as Ctrl-C, and any error after such a signal is treated as an interruption.

    Args:
        main: function that does the work of the command.
        interrupted: text that is printed after Ctrl-C or SIGTERM. It says what is left and how to resume.

    Returns:
        The exit code: 0 if `main` returns or its stdout was closed (as by `| head`), 2 after a UserError or OSError, 3 if another
        run holds the lock of the workspace or output folder, 75 after an interruption.

    Raises:
        Exception: if `main` raises any other error. Such an error is a bug.
    """
    with _signals_raise() as signals:
        try:
            configure_logging()
            main()
            code, text = 0, ""
        except Locked as error:
            code, text = LOCKED, str(error)
        except Interrupted as error:
            code, text = INTERRUPTED, str(error)
        except KeyboardInterrupt:
            code, text = INTERRUPTED, f"interrupted: {interrupted}"
        except Exception as error:
            # If a task on some node raises a UserError, Ray wraps it in another exception. Anything else is a bug.
            user_error = error if isinstance(error, OSError) else find_user_error(error)
            if isinstance(error, BrokenPipeError) and _stdout_is_closed():  # otherwise, a server has closed a connection
                code, text = 0, ""
            elif signals:  # code that a signal interrupted, such as an import, may have raised an exception of its own
                code, text = INTERRUPTED, f"interrupted: {interrupted}"
            elif user_error is None:
                raise
            else:
                code, text = USER_ERROR, f"error: {user_error}"
    if text:
        with suppress(OSError):  # stderr may have no reader any more
            print(f"\n{without_secrets(text)}", file=sys.stderr)  # texts quote URIs as the user gave them, with signatures
    _drop_unread_output()
    return code


@contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """Let SIGTERM and Ctrl-C raise KeyboardInterrupt in a `with` block. Yield a list that gets the number of each signal."""
    signals: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        """Record a signal, and raise KeyboardInterrupt, as Python does for Ctrl-C.

        Args:
            signum: number of the signal.
            frame: stack frame that the signal interrupted. Not used.
        """
        signals.append(signum)
        raise KeyboardInterrupt

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:  # a shell that starts a job in the background ignores SIGINT
            signal.signal(signum, stop)
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stdout_is_closed() -> bool:
    """Write an empty line to stdout, and return whether its reader, such as `head`, has closed it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _drop_unread_output() -> None:
    """Flush stdout and stderr. Discard the output of a closed pipe, for which Python would otherwise exit with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
