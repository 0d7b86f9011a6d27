"""What all commands share: exit codes, logging, and user errors printed as sentences."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from infra.errors import Interrupted, UserError, find_user_error
from infra.runtime.stages import Planned
from infra.storage.lock import Locked

USER_ERROR = 2
LOCKED = 3  # another run is at work on the same workspace
INTERRUPTED = 75  # EX_TEMPFAIL: run it again and it goes on
LOGGERS = ("deconvnet", "proposals", "infra", "workflows")
"""The packages whose messages a command prints."""
TRAINING_PAGES = (
    "/#/experiments?workflowType=machine_learning"  # without it MLflow opens its pages of agents, without the model registry
)


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


def run(main: Callable[[], int], interrupted: str = "the same command resumes from what is complete") -> int:
    """Run a command: configure logging, and turn errors into a line on stderr and an exit code.

    Args:
        main: the command; returns its exit code.
        interrupted: printed after Ctrl-C or SIGTERM; says what is left and how to resume.

    Returns:
        The exit code: that of `main`, 2 after a user error, 3 where another run holds the lock, 75 after an interruption.

    Raises:
        Exception: any other error of `main`, which is a bug.
    """
    configure_logging()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return main()
    except Locked as error:
        print(f"\n{error}", file=sys.stderr)
        return LOCKED
    except UserError as error:
        return _refused(error)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output (head, say) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refused(error)
    except Exception as error:
        # A mistake that only a task on some node could see comes back wrapped by Ray; anything else is a fault of ours.
        if user_error := find_user_error(error):
            return _refused(user_error)
        raise


def _refused(error: Exception) -> int:
    print(f"\nerror: {error}", file=sys.stderr)
    return USER_ERROR


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def planned(plan: Sequence[Planned]) -> str:
    """The stages, and which would run."""
    lines = [f"  {p.stage.name:<12} {p.stage.title:<36} {_standing(p)}" for p in plan]
    return "\n".join(["stages:", *lines])


def _standing(planned: Planned) -> str:
    return f"stands ({planned.record.seconds:,.0f} s when it ran)" if planned.record else "would run"


def results_table(results: Mapping[str, Any]) -> str:
    """The five results as a table for a terminal."""
    from deconvnet.reporting.figure import TITLES

    lines = [f"{results['dataset']}, {results['images']} photographs", f"  {'':<16}{'mean IoU':>9}{'pixels right':>14}"]
    for name, title in TITLES.items():
        row = results["rows"][name]
        lines.append(f"  {title:<16}{_share(row['mean_iou']):>9}{_share(row['pixel_accuracy']):>14}")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def how_to_see(uri: str) -> str:
    """How to open MLflow's pages for the store at `uri`."""
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {uri}   (quickstart: make ui), then http://localhost:5000{TRAINING_PAGES}"
    return uri
