"""Configure logging for the commands: messages of this project's packages are printed on stdout without any prefix."""

import logging
import sys
from typing import TextIO

LOGGERS = ("deconvnet", "proposals", "infra", "workflows")
"""Names of the packages whose messages the commands print."""


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """A log handler that writes to the present `sys.stdout`, which it looks up for each message.

    So the messages follow `sys.stdout` if it is redirected later.
    """

    def __init__(self) -> None:
        """Create the handler. It stores no stream of its own."""
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Return the current `sys.stdout`."""
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignore the value, because the stream is always `sys.stdout`."""


def configure_logging() -> None:
    """Print the messages of this project's packages, from level INFO on, to stdout without any prefix.

    A second call changes nothing.
    """
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _StdoutHandler) for handler in logger.handlers):
            handler = _StdoutHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.addHandler(handler)
