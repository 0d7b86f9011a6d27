"""Signals that arrive while long work is done: the work stops by itself, and no signal is lost. And a limit of minutes."""

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from infra.errors import Interrupted
from infra.runtime import interrupts
from infra.runtime.interrupts import caught_signals, time_limit

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Collects the signals that arrive outside of `caught_signals`."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda number, _: found.append(number)) for number in NUMBERS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_after_the_last_check_is_not_lost(received: list[int], number: signal.Signals) -> None:
    """The work goes on to its end, and then the signal reaches the handler that was there before."""
    with caught_signals() as caught:
        signal.raise_signal(number)
        assert caught == [number] and not received
    assert received == [number]


def test_a_signal_that_has_stopped_the_work_is_not_sent_again(received: list[int]) -> None:
    with pytest.raises(Interrupted), caught_signals():
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted("stopped")
    assert not received


def test_a_second_signal_stops_the_work_at_once(received: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), caught_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the work went on")
    assert not received


def test_afterwards_signals_are_handled_as_before(received: list[int]) -> None:
    with caught_signals() as caught:
        pass
    signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT] and not caught


def test_in_another_thread_signals_are_handled_as_before(received: list[int]) -> None:
    """Python can't handle them there."""
    handled = []

    def work() -> None:
        with caught_signals() as caught:
            handled.append((caught, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handled == [([], before)]


def test_a_time_limit_is_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(interrupts, "time", SimpleNamespace(monotonic=lambda: clock.now))
    limits = [time_limit(minutes) for minutes in (2, 0.5, None)]
    found = []
    for seconds in (0, 29, 30, 119, 120, 10**9):
        clock.now = 1000.0 + seconds
        found.append([reached() for reached in limits])
    assert [sum(each) for each in zip(*found, strict=True)] == [2, 4, 0] and found[-1] == [True, True, False]
