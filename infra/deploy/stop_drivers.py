"""Ask the commands that run as Ray jobs on this machine to stop, and wait until they have written their checkpoints.

  python -m infra.deploy.stop_drivers --seconds 120

Run it before the container of a Ray head is stopped (`preStop` in Kubernetes, `pre_stop` in Docker Compose): Ray itself would
kill the commands together with the head. They get SIGTERM and end with exit code 75, so Ray counts the jobs as failed, and
whoever started them may try again. (`ray job stop` would mark the jobs as stopped, and KubeRay does not retry stopped jobs.)
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable that Ray sets for the command of a job, and that its child processes inherit."""
_SHELLS = ("sh", "bash", "dash")


def drivers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that are commands of Ray jobs.

    Ray starts a command through a shell, which may remain as its parent. Shells are left out: a shell would exit at once on
    SIGTERM, and Ray would consider the job ended while the command still runs. Child processes are left out, because the command
    ends them.

    Args:
        processes: the processes to choose from.
    """
    of_jobs: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    for process in processes:
        with suppress(psutil.Error):  # it has ended, or belongs to another user
            if VARIABLE in process.environ() and process.name() not in _SHELLS:
                of_jobs[process.pid], parents[process.pid] = process, process.ppid()
    return [process for pid, process in of_jobs.items() if parents[pid] not in of_jobs]


def stop(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Send SIGTERM to processes, and wait for their end.

    Args:
        processes: the processes.
        seconds: longest time to wait.

    Returns:
        Those that still run.
    """
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, running = psutil.wait_procs(processes, timeout=seconds)
    return list(running)


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="longest time to wait (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Stop the commands of all Ray jobs on this machine. Returns 0, since nothing better can be done about those that still run.

    Args:
        argv: the arguments. None for those of the process.
    """
    options = command_line().parse_args(argv)
    for process in stop(drivers(psutil.process_iter()), options.seconds):
        print(f"process {process.pid} has not stopped within {options.seconds:g} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
