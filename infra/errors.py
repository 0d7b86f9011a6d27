"""Exceptions with a special meaning for the commands and jobs. Commands report them by their message, without a traceback."""


class UserError(Exception):
    """An error that the user can correct, such as a wrong setting, a bad input file or a server that can't be reached.

    Its message is one sentence that names the problem, the value that causes it, and the remedy. Commands print the message and
    exit with code 2.
    """


class BadInput(Exception):
    """An error about a single image, mask or training crop that can't be used.

    Its message becomes the reason in the table of rejected inputs. It does not stop a run: jobs skip the input and count it.
    """


class Interrupted(Exception):
    """Raised when the run was asked to stop by Ctrl-C, SIGTERM or `ray job stop`.

    The work done so far is kept, and the same command continues it. Commands print the message and exit with code 75.
    """


def find_user_error(error: BaseException) -> UserError | None:
    """Find the UserError that caused another error, for example among the errors in which Ray wraps that of a failed task.

    Args:
        error: any exception. Its causes are searched through Ray's attribute `cause` and Python's `__cause__`.

    Returns:
        A new UserError with the message of the one found; None if there is none. If `error` is itself a UserError, its message is
        used.
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
