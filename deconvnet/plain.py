"""Train and evaluate on a machine without Ray, MLflow and pydantic.

  python -m deconvnet.plain PACK --out OUT [--minutes 9] [--device cuda|cpu] [--only fcn8s,stage1] [--set train.stage1.max_steps=20]

It needs torch, numpy, scipy, opencv-python, pyarrow, pillow, numba, safetensors and matplotlib. PACK is a folder that
workflows/pack.py made. The crops are cut here, the batches and the training loop are those of the pipeline. What is finished in OUT
is not done again: after --minutes the run stops with a checkpoint, and the same command goes on.

In OUT: report/ (results.json, results.md, pictures; dev/ the same of dev), curves/*.jsonl (what training reported, by step), models/
(folders that the project's other doors take: predict, init.from).

Exit codes: 0 done; 2 a mistake; 75 stopped, by --minutes or a signal: run it again to go on.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.errors import Interrupted, UserError

STAGES = ("examples", "fcn8s", "stage1", "stage2", "evaluate")


class Clock:
    """Whether it is time to stop: the minutes are over, or a signal came."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._asked = False

    def ask(self, *_: Any) -> None:
        """Stop as soon as possible."""
        self._asked = True

    def __call__(self) -> bool:
        return self._asked or time.monotonic() >= self._end


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deconvnet.plain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, metavar="PACK", help="folder that workflows/pack.py made")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of all that is made")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop with a checkpoint after so long (default: 9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--only", default="", metavar="STAGES", help=f"of {','.join(STAGES)}; what they need is done too")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a setting of settings.json"
    )
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="processes and threads (default: all)")
    arguments = parser.parse_args(argv)
    clock = Clock(arguments.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, clock.ask)
    try:
        _run(arguments, clock)
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"\n{error}\nNOT FINISHED: run the same command again to go on")
        return 75
    print("\nFINISHED")
    return 0


def _run(arguments: argparse.Namespace, clock: Clock) -> None:
    # Imported here: the processes that cut crops import this module, and need none of it.
    from deconvnet.bare_run import Run

    names = [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in names if name not in STAGES]:
        raise UserError(f"--only {arguments.only}: there is no stage {unknown[0]}; there are {', '.join(STAGES)}")
    Run(arguments.pack, arguments.out, arguments.set, arguments.device, max(1, arguments.cores), clock).run(names or STAGES)


if __name__ == "__main__":
    sys.exit(main())
