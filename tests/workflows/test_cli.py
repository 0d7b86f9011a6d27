"""What all commands share: logging and exit codes."""

import contextlib
import io
import logging

import pytest

from infra.errors import Interrupted, UserError
from infra.storage.lock import Locked
from workflows.cli import configure_logging, run


def test_messages_are_printed_once_to_the_current_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    logging.getLogger("proposals.recall").info("  50 boxes find 92%%")
    assert capsys.readouterr().out == "  50 boxes find 92%%\n"
    with contextlib.redirect_stdout(io.StringIO()) as redirected:
        logging.getLogger("infra").warning("a warning")
        logging.getLogger("deconvnet").debug("not printed")
    assert redirected.getvalue() == "a warning\n" and not capsys.readouterr().out


class RemoteError(Exception):
    """An error as Ray wraps it: the task's own is its cause."""


def wrapped(error: Exception) -> Exception:
    outer = RemoteError("traceback of a task")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("data.root: there is no such folder"), 2, "error: data.root: there is no such folder"),
        (wrapped(UserError("a mask is damaged")), 2, "error: a mask is damaged"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: [Errno 13] Permission denied: '/x'"),
        (Locked("another run holds the lock"), 3, "another run holds the lock"),
        (Interrupted("stopped after stage 1"), 75, "stopped after stage 1"),
        (KeyboardInterrupt(), 75, "interrupted: nothing was written"),
    ],
)
def test_errors_have_exit_codes_and_no_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert run(main, "nothing was written") == code
    assert capsys.readouterr().err.strip() == message


def test_bugs_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
