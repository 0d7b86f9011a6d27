"""Configure logging for the commands: messages of this project's packages are printed on stdout without any prefix."""

import logging

LOGGERS = ("deconvnet", "proposals", "infra", "workflows")
"""Names of the packages whose messages the commands print."""


class _PrintHandler(logging.Handler):
    """A log handler that looks up `sys.stdout` for each message, so that later redirections take effect."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message. If it can't be printed, logging reports this on stderr, as for its own handlers."""
        try:
            print(self.format(record), flush=True)
        except Exception:
            self.handleError(record)


_HANDLER = _PrintHandler()


def configure_logging() -> None:
    """Print the messages of this project's packages, from level INFO on, to stdout without any prefix.

    A second call changes nothing.
    """
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(_HANDLER)
