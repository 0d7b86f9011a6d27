"""The work of `infra.runtime.tasks` on one machine without Ray: processes, a unit each."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from infra.errors import Interrupted
from infra.runtime.progress import progress
from infra.runtime.tasks import Each


@contextmanager
def processes(count: int, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Each]:
    """What takes the place of `tasks.for_each`, by `count` processes that stay for the block.

    Work and units must be picklable. Where `should_stop`, asked after each unit, says yes, Interrupted is raised; units that are
    begun are finished.
    """
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:

        def for_each(
            units: Mapping[int, Any], work: Callable[[int, Any], Any], *, title: str, kind: str = "parts", nodes: Any = None
        ) -> Iterator[tuple[int, Any]]:
            begun = {pool.submit(work, index, unit): index for index, unit in units.items()}
            try:
                for done in progress(as_completed(begun), len(begun), title, kind):
                    yield begun[done], done.result()
                    if should_stop():
                        raise Interrupted(f"{title}: stopped")
            finally:
                for future in begun:
                    future.cancel()

        yield for_each
