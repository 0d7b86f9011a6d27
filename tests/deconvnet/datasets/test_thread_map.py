"""Work by several threads."""

from deconvnet.datasets.thread_map import thread_map


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(thread_map(lambda i: i * i, range(300), 3, "squaring", "numbers")) == [i * i for i in range(300)]
