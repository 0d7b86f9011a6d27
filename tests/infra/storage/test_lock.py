"""Locks on disk and on a real S3 server: one run at a time takes a lock, and the others are told which."""

import errno
import fcntl
import json
import os
import threading
import time

import pytest

from infra import storage
from infra.errors import Interrupted, UserError
from infra.storage.lock import Locked, hold_lock
from tests.infra.storage.lock_holder import go, is_free, said, start_process


def test_a_second_run_fails_at_once_with_a_message_about_the_holder(uri):
    with hold_lock(uri, "the nightly run") as lock:
        assert not lock.lost
        with pytest.raises(Locked) as caught, hold_lock(uri, "another"):  # it does not wait for the lock, valid for minutes
            raise AssertionError
        record = storage.read_json(uri)
        since, expires = (time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record[name])) for name in ("since", "expires"))
        assert f"has held the lock {uri} since {since}: wait" in str(caught.value)
        assert str(caught.value).startswith(f"the nightly run (process {os.getpid()} on ")
        assert str(caught.value).endswith(f"expires by itself at {expires}")
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


@pytest.mark.parametrize("code", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EINVAL"])
def test_a_disk_without_file_locks_gives_a_warning(tmp_path, monkeypatch, caplog, code):
    """Network disks say so in several ways."""

    def unsupported(*_):
        raise OSError(getattr(errno, code), "Operation not supported")

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
    racers = [start_process(uri, f"racer {i}") for i in range(2)]
    assert [said(racer) for racer in racers] == ["ready", "ready"]
    for racer in racers:
        go(racer)
    printed = [said(racer) for racer in racers]
    for racer in racers:
        racer.communicate("\n")
    assert sorted(text == "holds" for text in printed) == [False, True], printed
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


def test_a_file_that_is_not_a_lock_is_left_alone(uri):
    storage.write_bytes(uri, b"notes")
    with pytest.raises(UserError, match="not a lock"), hold_lock(uri, "one"):
        raise AssertionError
    assert storage.read_bytes(uri) == b"notes"
    storage.write_bytes(uri, json.dumps({"holder": "x"}).encode())
    with pytest.raises(UserError, match="not a lock"), hold_lock(uri, "one"):
        raise AssertionError
