"""Locks on disk and on a real S3 server."""

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
from infra.storage import s3 as s3_module
from infra.storage.lock import Locked, held
from tests.infra.conftest import use

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from infra.storage.lock import Locked, held
uri, name, ttl, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
try:
    with held(uri, name, ttl):
        print("holds", flush=True)
        time.sleep(seconds)
except Locked as error:
    print(error, flush=True)
"""


@pytest.fixture
def uri(place: str) -> str:
    return storage.join(place, "retrain.lock")


def process(uri: str, name: str, ttl: float, seconds: float) -> subprocess.Popen:
    """Another process that takes the lock when it is sent a line."""
    command = [sys.executable, "-c", HOLD, uri, name, str(ttl), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    started = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    assert started.stdout.readline() == "ready\n"
    return started


def go(each: subprocess.Popen) -> None:
    each.stdin.write("\n")
    each.stdin.flush()


def test_the_second_leaves_at_once_and_hears_who_holds_it(uri):
    with held(uri, "the nightly run") as lock:
        assert not lock.lost
        begun = time.monotonic()
        with pytest.raises(Locked) as caught, held(uri, "another"):
            raise AssertionError
        assert time.monotonic() - begun < 5
        for said in ("the nightly run holds", uri, str(os.getpid()), time.strftime("%Y-%m-%d", time.gmtime()), "expires"):
            assert said in str(caught.value)
    assert not storage.exists(uri)
    with held(uri, "another"):
        pass


def test_it_is_released_when_the_block_fails(uri):
    with pytest.raises(ValueError), held(uri, "one"):
        raise ValueError
    with held(uri, "two"):
        pass


def test_a_holder_that_lives_longer_than_the_lock_keeps_it(uri):
    with held(uri, "one", ttl_seconds=3) as lock:
        first = storage.read_json(uri)["expires"]
        time.sleep(4)
        with pytest.raises(Locked), held(uri, "two"):
            raise AssertionError
        assert not lock.lost and storage.read_json(uri)["expires"] > first
    assert not storage.exists(uri)


def killed(uri: str, ttl: float) -> None:
    """Leave the lock of a process that was killed on this machine."""
    dead = process(uri, "dead", ttl, 600)
    go(dead)
    assert dead.stdout.readline() == "holds\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait()


def test_a_lock_that_died_on_this_machine_is_not_waited_for(uri):
    killed(uri, 600)
    with held(uri, "next"):
        assert storage.read_json(uri)["holder"] == "next"


def test_a_dead_holders_lock_expires(uri):
    killed(uri, 2)
    storage.write_json(uri, storage.read_json(uri) | {"host": "another machine"})
    with pytest.raises(Locked, match="dead"), held(uri, "next"):
        raise AssertionError
    time.sleep(2.1)
    with held(uri, "next") as lock:
        assert storage.read_json(uri)["holder"] == "next" and not lock.lost


def expired(uri: str) -> None:
    """Leave a lock that nobody has renewed."""
    standing = {"holder": "dead", "host": "gone", "pid": 1, "since": 0.0, "expires": time.time() - 1, "token": "x"}
    storage.write_json(uri, standing)


@pytest.mark.parametrize("left", ["nothing", "an expired lock"])
def test_of_processes_that_race_one_wins(uri, left):
    if left == "an expired lock":
        expired(uri)
    racers = [process(uri, f"racer {i}", 60, 1.5) for i in range(2)]
    for racer in racers:
        go(racer)
    said = [racer.communicate(timeout=60)[0] for racer in racers]
    assert sorted(each.startswith("holds") for each in said) == [False, True], said
    assert any("holds the lock" in each for each in said)
    assert not storage.exists(uri)


def test_threads_that_race_for_an_expired_lock(tmp_path):
    uri, won, start = str(tmp_path / "lock"), [], threading.Barrier(4)

    def race(name: str) -> None:
        start.wait()
        try:
            with held(uri, name):
                won.append(name)
                time.sleep(0.3)
        except Locked:
            pass

    for number in range(10):
        expired(uri)
        racers = [threading.Thread(target=race, args=(f"{number}",)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
    assert won == [str(number) for number in range(10)]


def test_a_holder_learns_that_it_was_robbed_and_leaves_the_other_alone(uri):
    with held(uri, "one", ttl_seconds=6) as lock:
        theirs = {**storage.read_json(uri), "holder": "two", "token": "theirs"}
        storage.write_json(uri, theirs)
        deadline = theirs["expires"] - 0.5  # at the next renewal, not only when its own time is up
        while not lock.lost:
            assert time.time() < deadline
            time.sleep(0.05)
    assert storage.read_json(uri) == theirs


def test_a_lock_that_cannot_be_renewed_is_lost_when_it_expires(uri, monkeypatch):
    def away(*_):
        raise OSError("away")

    with held(uri, "one", ttl_seconds=1) as lock:
        monkeypatch.setattr(storage, "replace_if_same", away)
        time.sleep(0.5)
        assert not lock.lost
        time.sleep(0.6)
        assert lock.lost


def test_a_renewal_that_was_written_but_never_answered_is_still_ours(s3, bucket, proxy, monkeypatch):
    use(monkeypatch, proxy)
    monkeypatch.setattr(s3_module, "PATIENCE_SECONDS", 0.2)
    uri = f"{bucket}/lock"
    with held(uri, "one", ttl_seconds=9) as lock:
        first = storage.read_json(uri)["expires"]
        proxy.lose_answers = 1000
        while (second := storage.read_json(uri)["expires"]) == first:
            time.sleep(0.05)
        time.sleep(0.5)
        proxy.lose_answers = 0
        while storage.read_json(uri)["expires"] == second:
            assert not lock.lost and time.time() < second
            time.sleep(0.05)
    assert not storage.exists(uri)


def test_what_is_no_lock_is_left_alone(uri):
    from infra.errors import UserError

    storage.write_bytes(uri, b"notes")
    with pytest.raises(UserError, match="not a lock"), held(uri, "one"):
        raise AssertionError
    assert storage.read_bytes(uri) == b"notes"
    storage.write_bytes(uri, json.dumps({"holder": "x"}).encode())
    with pytest.raises(UserError, match="not a lock"), held(uri, "one"):
        raise AssertionError
