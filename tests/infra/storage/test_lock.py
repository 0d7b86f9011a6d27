"""Locks on disk and on a real S3 server."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra import storage
from infra.errors import Interrupted, UserError
from infra.storage.lock import Locked, hold_lock
from infra.storage.objects import store
from tests.infra.conftest import use_s3

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from infra.storage.lock import Locked, hold_lock
from infra.storage.objects import store
uri, name, ttl, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold_lock(uri, name, ttl):
        print("holds", flush=True)
        time.sleep(seconds)
except Locked as error:
    print(error, flush=True)
"""


@pytest.fixture
def uri(folder: str) -> str:
    return storage.join(folder, "retrain.lock")


def is_free(uri: str) -> bool:
    """Whether the lock was released: its file stays, for the fencing token."""
    return storage.read_json(uri)["expires"] == 0


def start_process(uri: str, name: str, ttl: float, seconds: float) -> subprocess.Popen:
    """Start a process that takes the lock when `go` sends it a line."""
    command = [sys.executable, "-c", HOLD, uri, name, str(ttl), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen) -> None:
    """Let a started process take the lock."""
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_second_run_fails_at_once_with_a_message_about_the_holder(uri):
    with hold_lock(uri, "the nightly run") as lock:
        assert not lock.lost
        with (
            pytest.raises(Locked) as caught,
            hold_lock(uri, "another"),
        ):  # it does not wait for the lock, which is valid for minutes
            raise AssertionError
        for text in ("the nightly run (process ", uri, str(os.getpid()), time.strftime("%Y-%m-%d", time.gmtime()), "expires"):
            assert text in str(caught.value)
    assert is_free(uri)
    with hold_lock(uri, "another"):
        pass


def test_who_wants_to_wait_gets_the_lock_when_it_is_released(uri):
    holder = hold_lock(uri, "one")
    holder.__enter__()
    calls = []

    def try_again() -> bool:
        calls.append(uri)
        if len(calls) == 3:
            holder.__exit__(None, None, None)
        return True

    with hold_lock(uri, "two", try_again=try_again) as lock:
        assert len(calls) == 3 and lock.still_held()
    calls.clear()
    with (
        hold_lock(uri, "one"),
        pytest.raises(Locked),
        hold_lock(uri, "two", try_again=lambda: len(calls) < 2 and not calls.append(0)),
    ):
        raise AssertionError
    assert len(calls) == 2


def test_the_lock_is_released_when_the_block_fails(uri):
    with pytest.raises(ValueError), hold_lock(uri, "one"):
        raise ValueError
    with hold_lock(uri, "two"):
        pass


def test_a_holder_that_outlives_the_time_to_live_keeps_the_lock(uri):
    with hold_lock(uri, "one", ttl_seconds=3) as lock:
        first = storage.read_json(uri)["expires"]
        while time.time() <= first:
            time.sleep(0.1)
        with pytest.raises(Locked), hold_lock(uri, "two"):
            raise AssertionError
        assert not lock.lost and storage.read_json(uri)["expires"] > first
    assert is_free(uri)


def leave_lock_of_killed_process(uri: str, ttl: float) -> None:
    """Let a process of this machine take the lock, and kill it."""
    dead = start_process(uri, "dead", ttl, 600)
    go(dead)
    assert dead.stdout.readline() == "holds\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait()


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(uri):
    leave_lock_of_killed_process(uri, 600)
    with hold_lock(uri, "next"):
        assert storage.read_json(uri)["holder"] == "next"


def test_the_lock_of_another_machine_is_taken_over_once_it_expires(uri):
    leave_lock_of_killed_process(uri, 600)
    theirs = storage.read_json(uri) | {"host": "another machine"}
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


def test_a_lock_of_an_older_version_is_waited_for_and_then_taken_over(tmp_path):
    uri = str(tmp_path / "lock")
    old = {"holder": "old", "host": "gone", "pid": 1, "since": 0.0, "expires": time.time() + 600, "token": "x"}
    storage.write_json(uri, old)
    with pytest.raises(Locked, match=r"old \(process 1 on gone\) has held"), hold_lock(uri, "next"):
        raise AssertionError
    storage.write_json(uri, old | {"expires": time.time() - 1})
    with hold_lock(uri, "next") as lock:
        assert lock.fence == 2


def test_the_fencing_number_rises_with_every_holder(uri):
    fences = []
    for name in "abc":
        with hold_lock(uri, name) as lock:
            fences.append(lock.fence)
            assert storage.read_json(uri)["fence"] == lock.fence
    storage.write_json(uri, storage.read_json(uri) | {"expires": time.time() - 1, "holder": "dead"})  # not released
    with hold_lock(uri, "d") as lock:
        fences.append(lock.fence)
    assert fences == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ["taken over", "taken over and released", "deleted", "late"])
def test_a_holder_that_has_lost_its_lock_finds_out_by_reading_it(tmp_path, monkeypatch, how):
    uri = str(tmp_path / "lock")
    with hold_lock(uri, "one") as lock:
        assert lock.still_held() and not lock.lost
        lock.check()
        theirs = storage.read_json(uri) | {"holder": "two", "token": "theirs", "fence": 2}
        if how == "late":
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + 601)  # this process was stopped for long
        elif how == "deleted":
            storage.remove(uri)
        else:
            storage.write_json(uri, theirs | ({"expires": 0.0} if "released" in how else {}))
        assert not lock.still_held() and lock.lost
        said = (
            "two .*took the lock .*lock at .*only the results of that run are kept" if "taken" in how else "not renewed in time"
        )
        with pytest.raises(Interrupted, match=said):
            lock.check()
        monkeypatch.undo()
    assert how in ("deleted", "late") or storage.read_json(uri)["holder"] == "two"


def test_a_disk_without_file_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    uri = str(tmp_path / "lock")
    with hold_lock(uri, "one"), pytest.raises(Locked), hold_lock(uri, "two"):
        raise AssertionError
    assert "has no file locks" in caplog.text and is_free(uri)


def leave_expired_lock(uri: str) -> None:
    """Write a lock file that was not renewed in time."""
    record = {"holder": "dead", "host": "gone", "pid": 1, "since": 0.0, "expires": time.time() - 1, "token": "x"}
    storage.write_json(uri, record)


@pytest.mark.parametrize("left", ["nothing", "an expired lock"])
def test_one_of_two_racing_processes_takes_the_lock(uri, left):
    if left == "an expired lock":
        leave_expired_lock(uri)
    racers = [start_process(uri, f"racer {i}", 60, 1.5) for i in range(2)]
    for racer in racers:
        go(racer)
    printed = [racer.communicate()[0] for racer in racers]
    assert sorted(text.startswith("holds") for text in printed) == [False, True], printed
    assert any("has held the lock" in text for text in printed)
    assert is_free(uri)


def test_one_of_several_threads_takes_over_an_expired_lock(tmp_path):
    uri, won, start, refused = str(tmp_path / "lock"), [], threading.Barrier(4), threading.Semaphore(0)

    def race(name: str) -> None:
        start.wait()
        try:
            with hold_lock(uri, name):
                won.append(name)
                assert all(refused.acquire(timeout=60) for _ in range(3))
        except Locked:
            refused.release()

    for number in range(10):
        leave_expired_lock(uri)
        racers = [threading.Thread(target=race, args=(f"{number}",)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
    assert won == [str(number) for number in range(10)]


def test_a_holder_notices_that_its_lock_was_taken_over_and_leaves_it_to_the_other(uri):
    with hold_lock(uri, "one", ttl_seconds=6) as lock:
        theirs = {**storage.read_json(uri), "holder": "two", "token": "theirs"}
        storage.write_json(uri, theirs)
        deadline = theirs["expires"] - 0.5  # noticed at the next renewal, before our own time of expiry
        while not lock.lost:
            assert time.time() < deadline
            time.sleep(0.05)
    assert storage.read_json(uri) == theirs


def test_a_lock_that_cannot_be_renewed_is_lost_when_it_expires(uri, monkeypatch):
    def away(*_):
        raise OSError("away")

    with hold_lock(uri, "one", ttl_seconds=1) as lock:
        monkeypatch.setattr(storage, "exchange", away)
        expires = storage.read_json(uri)["expires"]
        while not lock.lost:
            time.sleep(0.01)
        assert time.time() >= expires


def test_a_renewal_whose_answer_is_lost_keeps_the_lock(s3, bucket, proxy, monkeypatch):
    use_s3(monkeypatch, proxy)
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.2)
    uri = f"{bucket}/lock"
    with hold_lock(uri, "one", ttl_seconds=9) as lock:
        first = storage.read_json(uri)["expires"]
        proxy.lose_answers = 1000
        while (second := storage.read_json(uri)["expires"]) == first:
            time.sleep(0.05)
        time.sleep(0.5)
        proxy.lose_answers = 0
        while storage.read_json(uri)["expires"] == second:
            assert not lock.lost and time.time() < second
            time.sleep(0.05)
    assert is_free(uri)


def test_a_file_that_is_not_a_lock_is_left_alone(uri):
    storage.write_bytes(uri, b"notes")
    with pytest.raises(UserError, match="not a lock"), hold_lock(uri, "one"):
        raise AssertionError
    assert storage.read_bytes(uri) == b"notes"
    storage.write_bytes(uri, json.dumps({"holder": "x"}).encode())
    with pytest.raises(UserError, match="not a lock"), hold_lock(uri, "one"):
        raise AssertionError
