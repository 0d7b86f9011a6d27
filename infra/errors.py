"""Exceptions with a special meaning for the project's commands and jobs."""


class UserError(Exception):
    """An error that the user can correct, such as a wrong setting, a bad input file or a server that can't be reached.

    Its message is one sentence that names the problem, the value that causes it, and the remedy. Commands print the message and
    exit with code 2.
    """


class BadInput(Exception):
    """An error about a single image, mask or training crop that can't be used.

    Jobs that catch it skip the input and continue. The message is stored as the reason in the table of rejected inputs.
    """


class Interrupted(Exception):
    """Raised to end a run early, because a stop was requested or the lock was lost.

    A stop is requested by Ctrl-C, SIGTERM or `ray job stop`. The lock is a file that lets only one run at a time write to a
    folder. The work done so far is kept. If the user runs the same command again, it continues from there. Commands print
    the message of this exception and exit with code 75.
    """


def find_user_error(error: BaseException) -> UserError | None:
    """Find the UserError that caused another error.

    This is needed because Ray, for example, wraps the UserError of a task in errors of its own.

    Args:
        error: any exception. Its causes are searched by Ray's attribute `cause` and Python's `__cause__`, at any depth.

    Returns:
        A new UserError with the message of the one found, which may be `error` itself; None if there is none.
    """
    causes, seen = [error], set()
    while causes:
        cause = causes.pop()
        if isinstance(cause, UserError):
            return UserError(str(cause))
        seen.add(id(cause))  # Ray's chains of causes may be circular
        further = (getattr(cause, "cause", None), cause.__cause__)
        causes += [c for c in further if isinstance(c, BaseException) and id(c) not in seen]
    return None


def forget_frames(error: BaseException) -> None:
    """Remove the tracebacks of an error and of all errors in its chain, so that they no longer keep local variables alive.

    A traceback references the frames in which the error was raised, and these reference their local variables, such as actors,
    until the error is collected.

    Args:
        error: a caught exception. If it is raised again, its traceback grows again from there.
    """
    errors, seen = [error], set()
    while errors:
        each = errors.pop()
        if id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            errors += [before for before in (each.__cause__, each.__context__) if before is not None]
