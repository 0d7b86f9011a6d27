"""Everything of Ray that is not public API and that we use all the same, each with the reason.

Written against Ray 2.60. `tests/infra/runtime/test_ray_compat.py` fails where another Ray no longer has what is used here.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def actor_retries(count: int) -> Iterator[dict[str, Any]]:
    """Keywords of `Dataset.map` that limit how often a unit is tried again after its actor died.

    Ray Data's own default retries for ever (`max_task_retries=-1`), so a unit that kills every actor would never end the job. The
    only way to set it is `ray_remote_args_fn`, which Ray 2.60 deprecates and names no successor for actors' retries.

    Args:
        count: retries of one unit.

    Yields:
        the keywords. The deprecation warning is silent inside the block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield {"ray_remote_args_fn": lambda: {"max_task_retries": count}}
