"""Work by several threads."""

from threading import Event

import pytest

from deconvnet.datasets.thread_map import thread_map


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(thread_map(lambda i: i * i, range(300), 3, "squaring", "numbers")) == [i * i for i in range(300)]


def test_a_result_that_is_ready_early_waits_for_those_before_it() -> None:
    """The first item is finished after the last."""
    later = Event()

    def work(item: int) -> int:
        if item == 2:
            later.set()
        assert later.wait(60)
        return item

    assert list(thread_map(work, range(3), 3, "working", "numbers")) == [0, 1, 2]


def test_an_error_is_raised_when_its_result_is_due() -> None:
    results = []
    with pytest.raises(ZeroDivisionError):
        for result in thread_map(lambda i: 1 // (70 - i), range(90), 3, "dividing", "numbers"):
            results.append(result)
    assert len(results) == 70
