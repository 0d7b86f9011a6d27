"""What all commands share: logging and exit codes."""

import contextlib
import io
import logging

import pytest

from workflows.cli import configure_logging


def test_messages_are_printed_once_to_the_current_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    logging.getLogger("proposals.recall").info("  50 boxes find 92%%")
    assert capsys.readouterr().out == "  50 boxes find 92%%\n"
    with contextlib.redirect_stdout(io.StringIO()) as redirected:
        logging.getLogger("infra").warning("a warning")
        logging.getLogger("deconvnet").debug("not printed")
    assert redirected.getvalue() == "a warning\n" and not capsys.readouterr().out
