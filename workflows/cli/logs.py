"""Logging of the commands: the messages of our packages go to stdout as they are."""

import logging
import sys
from typing import TextIO

LOGGERS = ("deconvnet", "proposals", "infra", "workflows")
"""The packages whose messages a command prints."""


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stdout` is when a message is logged, so that redirects made later are followed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The current `sys.stdout`."""
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignored: the stream is always `sys.stdout`."""


def configure_logging() -> None:
    """Print the messages of our packages (level INFO and above) to stdout, as they are.

    Calling it again changes nothing.
    """
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _StdoutHandler) for handler in logger.handlers):
            handler = _StdoutHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.addHandler(handler)
