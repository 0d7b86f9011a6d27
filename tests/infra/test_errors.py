"""A user's mistake is found in what Ray wraps it by."""

from infra.errors import UserError, users_mistake


def wrapped(cause: BaseException, by: str) -> RuntimeError:
    """An error that `cause` lies behind, as Ray's (attribute `cause`) or Python's (`__cause__`)."""
    error = RuntimeError("wrapped")
    setattr(error, by, cause)
    return error


def test_a_mistake_behind_other_errors_is_found():
    mistake = UserError("there is no such file")
    found = users_mistake(wrapped(wrapped(mistake, "cause"), "__cause__"))
    assert isinstance(found, UserError) and str(found) == "there is no such file"
    assert users_mistake(wrapped(ValueError("ours"), "cause")) is None


def test_an_error_that_is_its_own_cause_ends():
    ring = RuntimeError("ring")
    ring.__cause__ = wrapped(ring, "cause")
    assert users_mistake(ring) is None


def test_both_causes_are_looked_at():
    error = wrapped(ValueError("the wrong one"), "cause")
    error.__cause__ = UserError("the right one")
    assert str(users_mistake(error)) == "the right one"
