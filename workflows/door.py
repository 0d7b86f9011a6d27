"""What every door does: a person's mistake becomes a sentence and an exit code, results become a table."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.errors import Interrupted, UserError, users_mistake
from infra.runtime.stages import Planned
from infra.storage.lock import Locked

USER_ERROR = 2
LOCKED = 3  # another run is at work on the same workspace
INTERRUPTED = 75  # EX_TEMPFAIL: run it again and it goes on
TRAINING_PAGES = (
    "/#/experiments?workflowType=machine_learning"  # without it MLflow opens its pages of agents, without the model registry
)


def run(main: Callable[[], int], interrupted: str = "the same command goes on from what is finished") -> int:
    """`main()`, with UserError and interruptions turned into a line on stderr and an exit code.

    `interrupted` says what stands after Ctrl-C.
    """
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
        if mistake := users_mistake(error):
            return _refused(mistake)
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
