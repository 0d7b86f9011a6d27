"""Progress passes items on, and prints a line now and then in a log."""

import io
from types import SimpleNamespace

import pytest

from infra.runtime import progress as module


def test_items_pass_through_and_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    assert list(module.progress("abcd", 4, "letters", "pieces")) == ["a", "b", "c", "d"]
    assert capsys.readouterr().err.splitlines() == ["  letters: 2 of 4 pieces, 12 s", "  letters: 4 of 4 pieces, 24 s"]


def test_the_work_goes_on_if_the_reader_of_the_log_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `… 2>&1 | tee log`, when `tee` is killed."""

    def gone(text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(module.sys, "stderr", SimpleNamespace(isatty=lambda: False, write=gone, flush=lambda: None))
    assert list(module.progress("abcd", 4, "letters", "pieces")) == ["a", "b", "c", "d"]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(module.progress([1, 2], 2, "t", "x")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(module.sys, "stderr", terminal)
    assert list(module.progress(iter("abcd"), 4, "letters", "pieces")) == ["a", "b", "c", "d"]
    assert "letters: " in terminal.getvalue() and "0/4" in terminal.getvalue() and " pieces/s" in terminal.getvalue()
