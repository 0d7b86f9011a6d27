"""Locks of runs that have ended without releasing them: when another run may take them over."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import storage
from infra.storage.lock import Locked, hold_lock
from tests.infra.storage.lock_holder import go, said, start_process


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(uri):
    dead = start_process(uri, "dead")
    go(dead)
    assert [said(dead), said(dead)] == ["ready", "holds"]
    dead.kill()
    dead.wait()
    with hold_lock(uri, "next"):
        assert storage.read_json(uri)["holder"] == "next"


def test_the_lock_of_another_machine_is_taken_over_once_it_expires(uri):
    with hold_lock(uri, "dead"):
        theirs = storage.read_json(uri) | {"host": "another machine", "pid": 2**22 + 1}  # above any process id
    storage.write_json(uri, theirs)
    with pytest.raises(Locked, match="dead"), hold_lock(uri, "next"):
        raise AssertionError
    storage.write_json(uri, theirs | {"expires": time.time() - 0.1})
    with hold_lock(uri, "next") as lock:
        assert storage.read_json(uri)["holder"] == "next" and not lock.lost


def other_process() -> subprocess.Popen:
    """Start a process that lives until its stdin is closed."""
    return subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1)


def stat_fields(process: subprocess.Popen) -> list[str]:
    """Read what the kernel tells of a process: the fields after its name, of which the first is its state, the 20th its start."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()


@pytest.mark.parametrize(
    ("change", "taken_over"),
    [
        ({}, False),
        ({"started": "1"}, True),  # a later process has the same id
        ({"started": ""}, False),
        ({"pid": 2**22 + 1}, True),  # above any process id
        ({"pid": 2**22 + 1, "host": "another machine"}, False),
        ({"pid": 2**22 + 1, "kernel": "another kernel pid:[4026531836]"}, False),  # a container of the same host name elsewhere
        ({"pid": 2**22 + 1, "kernel": ""}, False),  # a lock of an older version
    ],
)
def test_a_lock_is_taken_over_at_once_only_if_its_process_has_certainly_ended(tmp_path, change, taken_over):
    uri = str(tmp_path / "lock")
    with other_process() as process:
        process.stdout.readline()
        start = stat_fields(process)[19]
        with hold_lock(uri, "another"):
            held = storage.read_json(uri)
        assert held["started"] and held["kernel"]
        theirs = {**held, "pid": process.pid, "started": start, "expires": time.time() + 600, **change}
        storage.write_json(uri, theirs)
        if taken_over:
            with hold_lock(uri, "next"):
                assert storage.read_json(uri)["holder"] == "next"
        else:
            with pytest.raises(Locked, match=r"another \(process .* has held"), hold_lock(uri, "next"):
                raise AssertionError
            assert storage.read_json(uri) == theirs
        process.stdin.close()


def test_the_lock_of_a_process_that_has_ended_but_was_not_waited_for_is_taken_over(tmp_path):
    uri = str(tmp_path / "lock")
    with other_process() as process:
        process.stdout.readline()
        start = stat_fields(process)[19]
        with hold_lock(uri, "dead"):
            held = storage.read_json(uri)
        storage.write_json(uri, {**held, "pid": process.pid, "started": start, "expires": time.time() + 600})
        process.stdin.close()
        process.stdout.read()
        while stat_fields(process)[0] != "Z":
            pass
        with hold_lock(uri, "next"):
            pass


def test_the_lock_of_a_process_of_another_user_is_respected(tmp_path, monkeypatch):
    """The system does not let it be asked whether it lives, but says so only if it does."""

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    uri = str(tmp_path / "lock")
    with hold_lock(uri, "one"):
        monkeypatch.setattr(os, "kill", forbidden)
        with pytest.raises(Locked, match=r"one \(process .* has held"), hold_lock(uri, "two"):
            raise AssertionError


def test_a_lock_of_an_older_version_is_waited_for_and_then_taken_over(tmp_path):
    uri = str(tmp_path / "lock")
    old = {"holder": "old", "host": "gone", "pid": 1, "since": 0.0, "expires": time.time() + 600, "token": "x"}
    storage.write_json(uri, old)
    with pytest.raises(Locked, match=r"old \(process 1 on gone\) has held"), hold_lock(uri, "next"):
        raise AssertionError
    storage.write_json(uri, old | {"expires": time.time() - 1})
    with hold_lock(uri, "next") as lock:
        assert lock.fence == 2
