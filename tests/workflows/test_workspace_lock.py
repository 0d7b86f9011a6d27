"""The lock of a workspace: who is waited for, whose place is taken, and which locks a command in a generation holds."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.errors import Interrupted
from infra.storage import lock as lock_module
from infra.storage.lock import Lock, Locked, LockRecord, hold_lock
from workflows.pipelines import generations
from workflows.pipelines import workspace as workspace_module
from workflows.pipelines.workspace import LOCK, hold_workspace

NOW = 1e9
GENERATION = "20261101-000000"


@dataclass
class Elsewhere:
    """A command on another machine took the lock 100 s ago for 900 s. It renews the lock after some seconds, or is lost."""

    file: Path
    now: float = NOW
    acts_at: float | None = None
    act: Callable[[LockRecord], LockRecord] = lambda record: record
    waits: int = 0

    def __post_init__(self) -> None:
        self.record = LockRecord("train_pipeline.py", "another host", 7, NOW - 100, NOW + 800, "theirs", 4)
        self.file.write_bytes(self.record.to_bytes())

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now, self.waits = self.now + seconds, self.waits + 1
        if self.acts_at is not None and self.now >= self.acts_at:
            self.file.write_bytes(self.act(self.record).to_bytes())


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    made = Elsewhere(tmp_path / LOCK)
    # In these modules alone: the thread that renews a lock goes by the machine's clock.
    monkeypatch.setattr(lock_module, "time", SimpleNamespace(time=lambda: made.now))
    monkeypatch.setattr(workspace_module, "time", SimpleNamespace(sleep=made.sleep, monotonic=lambda: made.now))
    return made


def test_the_place_of_a_lost_command_is_taken_when_its_lock_expires(elsewhere: Elsewhere, tmp_path: Path) -> None:
    with hold_workspace(str(tmp_path), "train_pipeline.py", replace_lost_run=True) as lock:
        assert lock.fence == 5
    assert 800 <= elsewhere.now - NOW < 810


def test_a_command_that_renews_its_lock_is_not_waited_for(elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.acts_at, elsewhere.act = NOW + 200, lambda record: replace(record, expires=elsewhere.now + 900)
    with (
        pytest.raises(Locked, match="process 7 on another host"),
        hold_workspace(str(tmp_path), "train_pipeline.py", replace_lost_run=True),
    ):
        raise AssertionError
    assert 200 <= elsewhere.now - NOW < 210


def test_a_third_command_that_has_taken_the_lock_meanwhile_is_not_waited_for(elsewhere: Elsewhere, tmp_path: Path) -> None:
    third = LockRecord("retrain.py", socket.gethostname(), 8, NOW + 50, NOW + 950, "third", 5)
    elsewhere.acts_at, elsewhere.act = NOW + 50, lambda record: third
    with pytest.raises(Locked, match=r"retrain\.py .*has held"), hold_workspace(str(tmp_path), "train", replace_lost_run=True):
        raise AssertionError
    assert elsewhere.now - NOW < 60


def test_a_lock_that_is_released_meanwhile_is_taken_at_once(elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.acts_at, elsewhere.act = NOW + 50, lambda record: replace(record, expires=0.0)
    with hold_workspace(str(tmp_path), "train_pipeline.py", replace_lost_run=True):
        assert elsewhere.now - NOW < 60


def test_a_generation_whose_command_renews_its_lock_is_waited_for_only_as_long_as_its_lock_may_last(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """The holder of the outer lock was lost, so the command in the generation should notice that and end."""

    def renew(record: LockRecord) -> LockRecord:
        assert elsewhere.now < NOW + 1000, "it is waited for without end"
        return replace(record, expires=elsewhere.now + 900)

    elsewhere.acts_at, elsewhere.act = NOW, renew
    outer = SimpleNamespace(check=lambda: None)
    with pytest.raises(Locked, match="process 7"), hold_workspace(str(tmp_path), "retrain.py", minutes=5, held=[outer]):
        raise AssertionError
    assert 300 <= elsewhere.now - NOW < 310


@pytest.mark.parametrize("options", [{}, {"replace_lost_run": True, "should_stop": lambda: True}])
def test_nobody_is_waited_for_if_that_was_not_asked_for_or_the_command_is_to_stop(
    options: dict, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    with pytest.raises(Locked), hold_workspace(str(tmp_path), "train_pipeline.py", **options):
        raise AssertionError
    assert elsewhere.waits == 0


def is_held(workspace: str) -> bool:
    """Whether another command would find the workspace locked."""
    try:
        with hold_lock(f"{workspace}/{LOCK}", "another"):
            return False
    except Locked:
        return True


def test_a_command_in_a_generation_holds_the_lock_of_the_workspace_around_it_too(tmp_path: Path) -> None:
    """Otherwise a retraining there might delete the generation."""
    base, held = str(tmp_path), list[Lock]()
    generation = generations.folder(base, GENERATION)
    with hold_workspace(generation, "evaluate.py", held=held) as lock:
        assert [each.uri for each in held] == [f"{base}/{LOCK}", f"{generation}/{LOCK}"] and held[1] is lock
        assert is_held(base) and is_held(generation)
    assert held == [] and not is_held(base) and not is_held(generation)
    with hold_lock(f"{base}/{LOCK}", "retrain.py") as outer:
        with pytest.raises(Locked, match=r"retrain\.py .*has held"), hold_workspace(generation, "evaluate.py"):
            raise AssertionError
        held = [outer]
        with hold_workspace(generation, "retrain.py", held=held) as lock:
            assert held == [outer, lock]
        assert held == [outer] and is_held(base)


def test_a_command_in_a_generation_is_interrupted_if_the_workspace_around_it_was_taken(tmp_path: Path) -> None:
    generation = generations.folder(str(tmp_path), GENERATION)
    held: list[Lock] = []
    with pytest.raises(Interrupted, match="anne"), hold_workspace(generation, "evaluate.py", held=held):
        theirs = LockRecord("anne's run", "another host", 7, time.time(), time.time() + 900, "theirs", 9)
        (tmp_path / LOCK).write_bytes(theirs.to_bytes())
        assert not held[0].still_held()  # as its thread notices in time
