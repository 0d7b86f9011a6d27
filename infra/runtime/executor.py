"""Where the independent pieces of a job run: the interface that `RayExecutor` and `LocalExecutor` share.

A job splits its work into *units* (a part of a table, a few images) before it starts, and hands them to an executor. Because the
units are fixed beforehand, the result does not depend on the executor or on the number of workers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[int, Any], Result]
"""What is done with a unit: called with the unit's index and the unit. It must be picklable: no lambda, no inner function."""


@dataclass(frozen=True)
class Actors:
    """How many workers that hold something heavy (networks, for instance) a job uses, and what each takes.

    Attributes:
        most: upper limit of their number; None for as many as fit.
        cpus: CPUs of each.
        gpus: GPUs of each, a fraction to share one.
        retries: how often a unit is tried again after its worker died.
        remedy: advice for the error message when workers keep dying, such as "use nodes with more memory".
    """

    most: int | None = None
    cpus: int = 1
    gpus: float = 0
    retries: int = 3
    remedy: str = "use nodes with more memory"


class Executor(Protocol):
    """Runs a job's independent units. Use it as a context manager; its workers exist inside the `with` block.

    Every method raises UserError where a unit raises it, and Interrupted between two results once the run is to stop.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def check(self) -> None:
        """Raise UserError if units would wait for ever, because no node that may run them exists."""
        ...

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Call `work(index, unit)` for every unit, one CPU each.

        Args:
            units: picklable units by index.
            work: what is done with each.
            title: name of the work in the progress display.
            unit: plural noun for the units there.

        Yields:
            index and result of each unit, in the order in which they finish.
        """
        ...

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Like `map`, by workers that load something heavy once and then take unit after unit.

        Args:
            units: picklable units by index.
            make: called once in each worker with the number of CPU threads it may use; returns the `work` of that worker.
            actors: how many workers, and what each takes.
            title: name of the work in the progress display.
            unit: plural noun for the units there.

        Yields:
            index and result of each unit, in the order in which they finish.

        Raises:
            UserError: if no node has room for a worker, or workers die over a unit again and again.
        """
        ...

    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """Run one function elsewhere and pass on what it yields, as it yields it.

        Args:
            work: a picklable function that returns an iterable.
            cpus: CPUs it takes.
            gpus: GPUs it takes.
            training: run it on a node for training rather than on one for data, where the cluster tells them apart.

        Yields:
            the items of `work()`.
        """
        ...
