"""What a person did wrong, in a sentence they can act on."""


class UserError(Exception):
    """A mistake of the user's: the message is one clear sentence that names the thing, its value and what would do.

    The doors in `workflows/` print it without a traceback and exit with code 2.
    """


class BadInput(Exception):
    """One photograph, mask or example that can't be used. The message is the reason shown in the `rejects` table.

    It never stops a run by itself: jobs set the input aside and count it.
    """


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM, `ray job stop`) and what it has done so far is kept; run it again to go on.

    The doors print the message and exit with code 75.
    """


def users_mistake(error: BaseException) -> UserError | None:
    """The UserError that a remote task failed by, if that was it: Ray wraps what tasks raise."""
    causes, seen = [error], set()
    while causes:
        cause = causes.pop()
        if isinstance(cause, UserError):
            return UserError(str(cause))
        seen.add(id(cause))  # Ray's chains can be rings
        further = (getattr(cause, "cause", None), cause.__cause__)
        causes += [c for c in further if isinstance(c, BaseException) and id(c) not in seen]
    return None
