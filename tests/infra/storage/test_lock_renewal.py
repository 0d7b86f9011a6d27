"""A holder renews its lock again and again, and finds out when it has lost it. No test waits for a lock to expire."""

import threading
from types import SimpleNamespace

import pytest

from infra import storage
from infra.errors import UserError
from infra.storage import lock as module
from infra.storage.lock import Locked, hold_lock
from infra.storage.objects import store
from tests.infra.conftest import use_s3
from tests.infra.storage.lock_holder import is_free
from tests.waiting import wait_until


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which renewals wait, each noted when the wait begins. It lasts a thousandth of them."""
    asked: list[float] = []

    class Hasty(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout
            asked.append(timeout)
            return super().wait(timeout / 1000)

    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=Hasty, Thread=threading.Thread))
    return asked


def at(patch: pytest.MonkeyPatch, now: float) -> None:
    """Set the clock of locks."""
    patch.setattr(module, "time", SimpleNamespace(time=lambda: now))


def test_a_holder_that_outlives_the_time_to_live_keeps_the_lock(uri, waits):
    with hold_lock(uri, "one", ttl_seconds=600) as lock:
        first = storage.read_json(uri)["expires"]
        before = len(waits)
        wait_until(lambda: len(waits) > before + 1, description="the lock was renewed")
        renewed = storage.read_json(uri)["expires"]
        assert renewed > first and set(waits) == {200.0}
        with pytest.MonkeyPatch.context() as patch:
            at(patch, (first + renewed) / 2)
            with pytest.raises(Locked), hold_lock(uri, "two"):
                raise AssertionError
            assert not lock.lost
    assert is_free(uri)


def test_a_holder_notices_that_its_lock_was_taken_over_and_leaves_it_to_the_other(uri, waits):
    with hold_lock(uri, "one") as lock:
        record = module.read_record(uri)
        theirs = module.replace(record, holder="two", token="theirs").to_bytes()
        wait_until(lambda: storage.compare_and_swap(uri, storage.read_bytes(uri), theirs), description="not just being renewed")
        wait_until(lambda: lock.lost)
    assert storage.read_bytes(uri) == theirs


def test_a_lock_that_cannot_be_renewed_is_lost_when_it_expires_and_not_before(uri, waits, monkeypatch):
    failed = []

    def away(*given: object) -> bool:
        failed.append(given)
        raise OSError("away")

    with hold_lock(uri, "one") as lock:
        monkeypatch.setattr(storage, "compare_and_swap", away)
        wait_until(lambda: len(failed) > 1)
        expires = storage.read_json(uri)["expires"]
        assert not lock.lost
        with pytest.MonkeyPatch.context() as patch:
            at(patch, expires - 0.001)
            assert not lock.lost
            at(patch, expires)
            assert lock.lost


def test_a_renewal_that_is_under_way_at_the_release_ends_first(tmp_path, waits, monkeypatch):
    """Otherwise it would renew the lock that was just released, and other runs would wait until it expires."""
    uri, read = f"{tmp_path}/lock", storage.read_bytes
    began, goes_on = threading.Event(), threading.Event()

    def slow(uri: str) -> bytes:
        if threading.current_thread().name == "lock":
            began.set()
            goes_on.wait(60)
        return read(uri)

    class Awaited(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            goes_on.set()
            super().join(timeout)

    monkeypatch.setattr(module.threading, "Thread", Awaited)
    monkeypatch.setattr(storage, "read_bytes", slow)
    with hold_lock(uri, "one", ttl_seconds=60) as lock:
        assert began.wait(60)
    lock._thread.join()
    assert is_free(uri)


def test_a_renewal_whose_answer_is_lost_keeps_the_lock(bucket, proxy, waits, monkeypatch):
    use_s3(monkeypatch, proxy)
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.2)
    uri, failed, real = f"{bucket}/lock", [], storage.compare_and_swap

    def noting(*given: object) -> bool:
        try:
            return real(*given)
        except UserError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(storage, "compare_and_swap", noting)
    with hold_lock(uri, "one") as lock:
        first = storage.read_json(uri)["expires"]
        proxy.lose_answers = 1000
        wait_until(lambda: bool(failed))
        proxy.lose_answers = 0
        renewed = storage.read_json(uri)["expires"]
        assert renewed > first, "the renewal arrived"
        wait_until(lambda: lock.lost or storage.read_json(uri)["expires"] > renewed)
        assert not lock.lost
    assert is_free(uri)
