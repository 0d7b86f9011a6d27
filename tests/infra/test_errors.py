"""find_user_error finds a UserError behind other errors."""

from infra.errors import UserError, find_user_error


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
