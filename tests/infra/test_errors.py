"""A UserError is found behind other errors, and errors forget their frames."""

import gc
import weakref

import pytest

from infra.errors import UserError, find_user_error, forget_frames


def wrapped(cause: BaseException, by: str) -> RuntimeError:
    """An error with a cause, in the attribute `by`: "cause" as Ray sets it, "__cause__" as Python does."""
    error = RuntimeError("wrapped")
    setattr(error, by, cause)
    return error


def test_a_user_error_behind_other_errors_is_found():
    user_error = UserError("there is no such file")
    found = find_user_error(wrapped(wrapped(user_error, "cause"), "__cause__"))
    assert isinstance(found, UserError) and str(found) == "there is no such file"
    assert find_user_error(wrapped(ValueError("ours"), "cause")) is None


def test_circular_causes_end_the_search():
    ring = RuntimeError("ring")
    ring.__cause__ = wrapped(ring, "cause")
    assert find_user_error(ring) is None


def test_both_kinds_of_cause_are_followed():
    error = wrapped(ValueError("the wrong one"), "cause")
    error.__cause__ = UserError("the right one")
    assert str(find_user_error(error)) == "the right one"


class Process:
    """Something that a variable refers to."""


def start(alive: weakref.WeakSet[Process]) -> None:
    process = Process()
    alive.add(process)
    raise OSError("started in vain")


def test_an_error_that_forgets_its_frames_keeps_nothing_alive_nor_do_those_before_it() -> None:
    alive: weakref.WeakSet[Process] = weakref.WeakSet()

    def fail() -> None:
        process = Process()
        alive.add(process)
        try:
            start(alive)
        except OSError as first:
            try:
                start(alive)
            except OSError:  # the context of the next error, which has a cause as well
                raise ValueError("failed") from first

    gc.disable()
    try:
        with pytest.raises(ValueError, match=r"^failed$") as caught:
            fail()
        error = caught.value
        del caught
        assert len(alive) == 3
        forget_frames(error)
        assert len(alive) == 0
        assert str(error.__cause__) == "started in vain"
    finally:
        gc.enable()
