"""A process whose Ray is lost ends with a message and exit code 75, and not while Ray is shut down as planned."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.runtime import ray_watch
from infra.runtime.ray_watch import watched
from tests.conftest import ROOT


class Store:
    """A socket like that of Ray's object store, which accepts one connection."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()

    def end(self) -> None:
        """End as a killed process does."""
        self._socket.accept()[0].close()
        self._socket.close()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the process would be ended for; `ended` is set then."""
    found: list[str] = []
    monkeypatch.setattr(ray_watch, "_end", lambda what: (found.append(what), ended.set()))
    monkeypatch.setattr(ray_watch, "PAUSE_SECONDS", 0.001)
    ended.clear()
    yield found


ended = threading.Event()


def unanswered(address: str) -> None:
    raise ConnectionError(address)


def test_the_end_of_the_object_store_ends_the_process(ends, tmp_path):
    store = Store(tmp_path / "store")
    with watched(store.path, None, unanswered, 15):
        assert not ended.is_set()
        store.end()
        assert ended.wait(10) and ends == ["its processes on this machine have ended"]


@pytest.mark.parametrize(("limit", "checks"), [(None, 2), ("600", 28), ("1", 1)])
def test_a_head_that_does_not_answer_several_times_in_a_row_ends_the_process(ends, monkeypatch, limit, checks):
    """The fewer, the earlier Ray itself would end it."""
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    if limit:
        monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", limit)
    outcomes = [*[False] * (checks - 1), True, *[False] * checks]  # True: it answers
    made = []

    def check(address: str) -> None:
        made.append(address)
        if ended.is_set() or outcomes[len(made) - 1]:
            return
        raise ConnectionError

    with watched(None, "1.2.3.4:6379", check, 15):
        assert ended.wait(10)
    assert len(made) >= 2 * checks
    assert ends[0] == f"its head at 1.2.3.4:6379 has not answered for {15 * checks} s"


def watching() -> list[threading.Thread]:
    """The threads that watch Ray."""
    return [thread for thread in threading.enumerate() if "watch Ray" in thread.name]


def test_a_planned_shutdown_ends_nothing(ends, tmp_path):
    store = Store(tmp_path / "store")
    with watched(store.path, "1.2.3.4:6379", lambda address: None, 15):
        assert len(watching()) == 2
    for thread in watching():  # which wait neither for the store nor for the head
        thread.join(10)
    assert not watching() and not ends
    store.end()


def test_a_store_that_is_not_on_this_machine_is_not_watched(ends, tmp_path):
    with watched(str(tmp_path / "none"), None, unanswered, 15):
        assert not watching()
    assert not ends


def test_the_exit_code_is_75_and_the_message_comes_after_what_was_printed_before():
    code = (
        "import logging, sys; from infra.runtime.ray_watch import _end; from workflows.cli.logs import configure_logging; "
        "configure_logging(); sys.stdout.write('before'); _end('its head has gone')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 75 and done.stdout.startswith("before\nRay was lost: its head has gone. What is complete is kept")
