"""A stop request reaches the training, though the actor that holds it is out of reach for a moment."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from infra.runtime.report_queue import StopFlag


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([False, ActorUnavailableError("no route", None), True], [False, False, True, True]),
        ([False, ActorDiedError()], [False, False, False, False]),
        ([["late"], True], [False, False, True, True]),  # an answer that isn't there yet
    ],
)
def test_an_actor_that_does_not_answer_for_a_moment_is_asked_again_and_never_waited_for(
    answers: list[Any], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(answers)

    def get(answer: Any) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    def wait(found: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == 0
        if isinstance(found[0], list) and found[0]:
            found[0].clear()  # it is there the next time
            return [], found
        return found, []

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    flag = StopFlag(SimpleNamespace(stop_requested=SimpleNamespace(remote=lambda: next(asked, None))))
    assert [flag() for _ in expected] == expected
