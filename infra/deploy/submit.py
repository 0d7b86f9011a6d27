"""Run a command as a job of a Ray cluster, print its log, and end with its exit code.

  python -m infra.deploy.submit --address http://HEAD:8265 -- python workflows/retrain.py --config FILE

`ray job submit` exits with 1 whatever the command's exit code was, and if it is stopped, the job continues. A schedule such as a
Kubernetes CronJob needs both: an error in the settings (2) must not be tried again, an interrupted run (75) must, and a run that
is stopped at the schedule's deadline must stop. On SIGTERM or Ctrl-C the job gets SIGTERM, and time to write a checkpoint.

Exit codes: that of the command; 128 + N if it was ended by signal N; 75 if the job was stopped, or was lost with its head, or the
cluster can't be reached.
"""

import argparse
import asyncio
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from infra.redaction import without_secrets

LOST = 75
"""Exit code if running the same command again may help; the same as the exit code of an interrupted command of the project."""
POLL_SECONDS = 1.0
"""Seconds between two looks at whether the job has ended."""
AWAY_SECONDS = 60.0
"""Seconds for which the cluster may be out of reach while the job runs."""


def run(client: JobSubmissionClient, command: Sequence[str]) -> int:
    """Run a command as a Ray job, and print its log meanwhile. Stop it if this process is interrupted.

    Args:
        client: client of the cluster.
        command: the command and its arguments. It runs on the head, in the image's working directory.

    Returns:
        The exit code to end with.

    Raises:
        Exception: if the cluster can't be reached for a minute, or refuses the job.
    """
    job = f"submitted-{uuid.uuid4().hex[:12]}"  # chosen here, so that it can be stopped at any moment
    try:
        client.submit_job(entrypoint=shlex.join(command), submission_id=job)
        asyncio.run(_print_log(client, job))
        return exit_code(_wait(client, job))
    except KeyboardInterrupt:
        print(f"interrupted: job {job} is stopped", file=sys.stderr, flush=True)
        if client.stop_job(job):
            _wait(client, job)
        return LOST


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    """Print the log of a job while it runs. If the connection breaks, print a message and return; the job continues."""
    try:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)
    except Exception as error:  # from aiohttp or Ray
        text = f"the log of job {job} ends here, as its connection broke: {error}; the job is waited for"
        print(without_secrets(text), file=sys.stderr, flush=True)


def _wait(client: JobSubmissionClient, job: str) -> JobDetails:
    """Wait until a job has ended, and return Ray's description of it.

    Raises:
        Exception: if the cluster has not answered for a minute (AWAY_SECONDS).
    """
    answered = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job)
        except Exception:
            if time.monotonic() - answered > AWAY_SECONDS:
                raise
        else:
            if details.status.is_terminal():
                return details
            answered = time.monotonic()
        time.sleep(POLL_SECONDS)


def exit_code(job: JobDetails) -> int:
    """Return the exit code for a job that has ended.

    Args:
        job: Ray's description of the job. `driver_exit_code` is None if the job ended with its supervisor or its node.
    """
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code = job.driver_exit_code
    if job.status == JobStatus.STOPPED or code is None:
        return LOST
    return 128 - code if code < 0 else code


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, metavar="URL", help="address of the cluster's dashboard")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names, and return the exit code to end with.

    Args:
        argv: the arguments. None for those of the process.
    """
    options = command_line().parse_args(argv)

    def stop(signum: int, frame: Any) -> None:
        """Raise KeyboardInterrupt, as Python does for Ctrl-C."""
        raise KeyboardInterrupt

    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, stop)
    try:
        return run(JobSubmissionClient(options.address), options.command)
    except KeyboardInterrupt:
        return LOST
    except (
        Exception
    ) as error:  # ConnectionError, or of requests, aiohttp or Ray: whatever it is, the cluster has not done the work
        text = f"the Ray cluster at {options.address} has not run the command to its end: {error}"
        print(without_secrets(text), file=sys.stderr)
        return LOST


if __name__ == "__main__":
    sys.exit(main())
