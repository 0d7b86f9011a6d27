"""Commands that run as Ray jobs: a schedule gets their exit codes, and before a head is stopped they are asked to stop."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv

from infra.deploy import stop_drivers, submit
from tests.conftest import ROOT


class Client:
    """A stand-in for Ray's client: a job with one line of log, which ends as given.

    The log breaks with the error `error`. The first questions about the job are answered by the errors `away`.
    """

    def __init__(
        self,
        status: JobStatus = JobStatus.SUCCEEDED,
        code: int | None = 0,
        error: BaseException | None = None,
        away: Iterable[Exception] = (),
    ) -> None:
        self.status, self.code, self.error, self.away = status, code, error, iter(away)
        self.submitted: dict[str, str] = {}
        self.stopped: list[str] = []

    def submit_job(self, entrypoint: str, submission_id: str) -> None:
        self.submitted[submission_id] = entrypoint

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        assert job in self.submitted
        yield "epoch 1\n"
        if self.error:
            raise self.error

    def get_job_info(self, job: str) -> Any:
        assert job in self.submitted
        for error in self.away:
            raise error
        return SimpleNamespace(status=self.status, driver_exit_code=self.code)

    def stop_job(self, job: str) -> bool:
        self.stopped.append(job)
        self.status = JobStatus.STOPPED
        return True


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 75, 75),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 75),
        (JobStatus.STOPPED, -15, 75),
        (JobStatus.STOPPED, None, 75),
    ],
)
def test_the_exit_code_is_that_of_the_command(
    status: JobStatus, code: int | None, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    client: Any = Client(status, code)
    assert submit.run(client, ["python", "train.py", "--name", "a b"]) == expected
    assert list(client.submitted.values()) == ["python train.py --name 'a b'"] and not client.stopped
    assert capsys.readouterr().out == "epoch 1\n"


def test_an_interrupted_submission_stops_its_job() -> None:
    client: Any = Client(JobStatus.RUNNING, None, error=KeyboardInterrupt())
    assert submit.run(client, ["python", "train.py"]) == 75
    assert client.stopped == list(client.submitted)


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Lets a test change how SIGTERM is handled. Nothing happens at one until then."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_stops_the_job_and_waits_until_it_has_ended(sigterm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the deadline of a CronJob. The job writes its checkpoint meanwhile."""
    states = [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.STOPPED]

    class Stopping(Client):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "epoch 1\n"
            signal.raise_signal(signal.SIGTERM)
            yield "epoch 2\n"

        def get_job_info(self, job: str) -> Any:
            assert self.stopped == [job]
            return SimpleNamespace(status=states.pop(0), driver_exit_code=None)

    client = Stopping(JobStatus.RUNNING)
    monkeypatch.setattr(submit, "JobSubmissionClient", lambda address: client)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(submit, "AWAY_SECONDS", 0.0)
    assert submit.main(["--address", "http://head:8265", "--", "python", "train.py"]) == 75
    assert client.stopped == list(client.submitted) and states == []


@pytest.mark.parametrize("error", [ConnectionError("no head"), RuntimeError("closed with code 1006"), TimeoutError("slow")])
def test_a_cluster_that_can_t_be_reached_or_is_lost_may_be_tried_again(
    error: Exception, sigterm: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "JobSubmissionClient", lambda address: Client(error=error, away=repeat(error)))
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(submit, "AWAY_SECONDS", 0.01)
    assert submit.main(["--address", "http://anne:pa55@head:8265", "--", "python", "train.py"]) == 75
    assert "the Ray cluster at http://head:8265 has not" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionError("reset"), RuntimeError("http://a:pa55@head closed with code 1006")])
def test_a_job_whose_log_breaks_is_waited_for_and_a_lost_question_repeated(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    client: Any = Client(JobStatus.FAILED, 2, error=error, away=[error] * 3)
    assert submit.run(client, ["python", "train.py"]) == 2 and not client.stopped
    said = capsys.readouterr()
    assert said.out == "epoch 1\n" and "connection broke" in said.err and "pa55" not in said.err


def test_a_job_is_waited_for_as_long_as_its_cluster_answers_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other question is lost, for hours. Then none is answered for a minute."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(submit, "time", clock)
    monkeypatch.setattr(submit, "POLL_SECONDS", 50.0)
    running, away = SimpleNamespace(status=JobStatus.RUNNING), ConnectionError("away")
    answers = chain([running, away] * 500, repeat(away))

    def get_job_info(job: str) -> Any:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    client: Any = SimpleNamespace(get_job_info=get_job_info)
    with pytest.raises(ConnectionError):
        submit._wait(client, "job")
    assert now == [50.0 * 1000]


DRIVER = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def started(command: list[str], job: bool) -> "subprocess.Popen[str]":
    """A process that is ready, as the command of a Ray job or not."""
    env = {**os.environ, RAY_JOB_CONFIG_JSON_ENV_VAR: "{}"} if job else {**os.environ}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("shell", [False, True], ids=["direct", "under a shell"])
def test_the_command_of_a_job_is_stopped_and_writes_a_checkpoint(tmp_path: Path, shell: bool) -> None:
    """Also if Ray's shell is still its parent, which ends with the exit code of the command."""
    python = [sys.executable, "-S", "-c", DRIVER, str(tmp_path / "checkpoint")]
    driver = started(["sh", "-c", '"$@"; exit $?', "sh", *python] if shell else python, job=True)
    found = stop_drivers.drivers([psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)])
    assert [process.name().startswith("python") for process in found] == [True]
    assert stop_drivers.stop(found, 10) == []
    code = driver.wait(10) if shell else found[0].wait()  # psutil has waited for our own child process
    assert code == 75 and (tmp_path / "checkpoint").read_text() == "checkpoint"


def test_other_processes_go_on(tmp_path: Path) -> None:
    other = started([sys.executable, "-S", "-c", DRIVER, str(tmp_path / "checkpoint")], job=False)
    try:
        assert stop_drivers.drivers([psutil.Process(other.pid)]) == []
    finally:
        other.kill()
        other.wait()


def test_the_child_processes_of_a_command_are_left_to_it() -> None:
    shell = 'import subprocess, sys; c = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)'
    driver = started([sys.executable, "-S", "-c", f"{shell}; print('ready', flush=True); c.wait()"], job=True)
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    try:
        assert len(family) == 2 and [process.pid for process in stop_drivers.drivers(family)] == [driver.pid]
    finally:
        for process in family:
            process.kill()
        driver.wait()


def test_a_command_that_does_not_stop_is_reported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = SimpleNamespace(pid=7)
    monkeypatch.setattr(stop_drivers, "drivers", lambda processes: [stubborn])
    monkeypatch.setattr(stop_drivers, "stop", lambda processes, seconds: processes if seconds == 3 else [])
    assert stop_drivers.main(["--seconds", "3"]) == 0
    assert "process 7 has not stopped within 3 s" in capsys.readouterr().err


def test_ray_accepts_the_runtime_environments_of_the_documentation() -> None:
    found = re.findall(r"--runtime-env-json '(\{.*\})'", (ROOT / "docs" / "operations.md").read_text("utf-8"))
    made = [RuntimeEnv(**json.loads(text)) for text in found]
    assert [sorted(key for key in env if key[0] != "_") for env in made] == [
        ["env_vars"],
        ["env_vars", "image_uri"],
        ["env_vars", "pip"],
    ]
