"""How many examples Hypothesis tries."""

import os

from hypothesis import settings


def examples(count: int) -> settings:
    """The settings of a test with this many examples, or DECONVNET_EXAMPLES times as many: in the night, many more are tried.

    The examples are new in each run, so many runs of a few find what one of many does.
    """
    return settings(max_examples=count * int(os.environ.get("DECONVNET_EXAMPLES", "1")))
