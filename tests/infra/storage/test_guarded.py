"""A run that was frozen until another one took its lock overwrites nothing of that run, wherever it was frozen."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra import storage
from infra.errors import Interrupted
from infra.storage.guarded import LockGuard
from infra.storage.lock import hold_lock


@pytest.fixture
def guard(tmp_path: Path) -> LockGuard:
    """The guard of a run that holds a lock which is no longer renewed, as that of a frozen process."""
    with hold_lock(str(tmp_path / "lock"), "one") as lock:
        return LockGuard(lock.uri, lock.token)


@pytest.mark.parametrize("before", [None, b"old"])
def test_the_holder_writes(guard, tmp_path, before):
    if before:
        (tmp_path / "file").write_bytes(before)
    for content in (b"new", b"newer", b"newer"):
        guard.write(str(tmp_path / "file"), content)
        assert (tmp_path / "file").read_bytes() == content
    guard.write_json(str(tmp_path / "nested/file.json"), {"a": 1})
    assert storage.read_json(str(tmp_path / "nested/file.json")) == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lock", "nested"]


def freeze(monkeypatch: pytest.MonkeyPatch, before: str, meanwhile: Callable[[], None]) -> None:
    """Let another run work immediately before this one calls a function of the storage for the first time."""
    real = getattr(storage, before)

    def late(*args: object) -> object:
        monkeypatch.setattr(storage, before, real)
        meanwhile()
        return real(*args)

    monkeypatch.setattr(storage, before, late)


@pytest.mark.parametrize("before", ["read_bytes", "compare_and_swap"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_run_that_wakes_after_another_one_overwrites_nothing(guard, tmp_path, monkeypatch, before, old):
    file = tmp_path / "file"
    if old:
        file.write_bytes(old)

    def meanwhile() -> None:
        with hold_lock(guard.uri, "two") as lock:
            LockGuard(lock.uri, lock.token).write(str(file), b"of two")

    freeze(monkeypatch, before, meanwhile)
    with pytest.raises(Interrupted, match=r"two \(process \d+ on .*\) took the lock .*: only the results of that run are kept"):
        guard.write(str(file), b"of one")
    assert file.read_bytes() == b"of two"


def test_what_a_late_run_writes_first_is_overwritten_by_the_holder(guard, tmp_path, monkeypatch):
    """The late run was frozen in its exchange, which succeeds while the holder is about to write the same file."""
    file = tmp_path / "file"
    with hold_lock(guard.uri, "two") as lock:
        freeze(monkeypatch, "compare_and_swap", lambda: file.write_bytes(b"of one"))
        LockGuard(lock.uri, lock.token).write(str(file), b"of two")
    assert file.read_bytes() == b"of two"


def test_a_lock_that_was_deleted_is_lost(guard, tmp_path):
    Path(guard.uri).unlink()
    with pytest.raises(Interrupted, match="another run took the lock"):
        guard.check()
