"""Measuring the parts of a computation."""

import threading

import pytest

from infra.stopwatch import collect_timings, timed


@timed("doubled")
def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


def test_parts_are_measured_by_name_in_their_order_and_added_up() -> None:
    with collect_timings() as seconds:
        assert [double(1), double(2)] == [2, 4]
        first = seconds["doubled"]
        with timed("outer"), timed("inner"):
            double(3)
    assert list(seconds) == ["doubled", "inner", "outer"]
    assert seconds["doubled"] > first >= 0 and seconds["outer"] >= seconds["inner"] >= seconds["doubled"] - first


def test_a_part_that_fails_is_measured_too() -> None:
    with collect_timings() as seconds, pytest.raises(KeyError), timed("failed"):
        raise KeyError
    assert list(seconds) == ["failed"]


def test_nothing_is_measured_outside_or_in_other_threads() -> None:
    assert double(1) == 2 and double.__doc__ == "Twice a number."
    with collect_timings() as seconds:
        thread = threading.Thread(target=double, args=(1,))
        thread.start()
        thread.join()
    double(1)
    assert seconds == {}
