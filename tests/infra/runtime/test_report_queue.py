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
    ],
)
def test_an_actor_that_does_not_answer_for_a_moment_is_asked_again(
    answers: list[Any], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(answers)

    def get(answer: Any) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    monkeypatch.setattr(ray, "wait", lambda found, timeout: (found, []))
    monkeypatch.setattr(ray, "get", get)
    flag = StopFlag(SimpleNamespace(stop_requested=SimpleNamespace(remote=lambda: next(asked, None))))
    assert [flag() for _ in expected] == expected
