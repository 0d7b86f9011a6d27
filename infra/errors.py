"""Exceptions that the commands report as a message, without a traceback."""


class UserError(Exception):
    """Something the user can correct: settings, input files, or a server that can't be reached.

    The message is one sentence that names what is wrong, its value, and what to do. The commands print it and exit with code 2.
    """


class BadInput(Exception):
    """One image, mask or training crop that can't be used.

    The message becomes the reason in the `rejects` table. It never stops a run by itself: jobs skip the input and count it.
    """


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM, `ray job stop`); its work so far is kept, and the same command resumes it.

    The commands print the message and exit with code 75.
    """


def find_user_error(error: BaseException) -> UserError | None:
    """Find the UserError that caused an error, for example within the errors that Ray wraps round a failed task.

    Args:
        error: any exception; its `cause` attribute (Ray's) and `__cause__` (Python's) are followed.

    Returns:
        A UserError with the same message, or None if no UserError is among the causes.
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
