"""Processes in the place of Ray's tasks."""

import pytest

from infra.errors import Interrupted, UserError
from infra.runtime.local_executor import processes


def doubled(index: int, unit: int) -> int:
    if unit < 0:
        raise UserError(f"{unit} is negative")
    return 10 * index + 2 * unit


def test_units_are_done_and_mistakes_are_told():
    with processes(2) as each:
        assert dict(each({3: 1, 5: 2}, doubled, title="doubling")) == {3: 32, 5: 54}
        assert list(each({}, doubled, title="doubling")) == []
        with pytest.raises(UserError, match="-1 is negative"):
            list(each({0: 4, 1: -1}, doubled, title="doubling", nodes=None))


def test_it_stops_when_asked():
    done = []
    with processes(1, lambda: True) as each, pytest.raises(Interrupted, match="doubling"):
        for result in each(dict.fromkeys(range(50), 1), doubled, title="doubling"):
            done.append(result)
    assert len(done) == 1
