"""The interface of executors, which run the independent pieces of a job. `RayExecutor` and `LocalExecutor` implement it.

A job is divided into *units* of work before it starts, such as the parts of a table or groups of images. Because the units are
fixed, the result depends neither on the executor nor on the number of workers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[int, Any], Result]
"""A function that does one unit of work, given the unit's index and the unit.

It must be picklable: no lambda, no inner function.
"""


@dataclass(frozen=True)
class Actors:
    """The number of workers for a job that must load something heavy, such as networks, and the resources of each worker.

    Attributes:
        most: largest number of workers; None for as many as fit.
        cpus: number of CPUs of each worker.
        gpus: number of GPUs of each worker. A fraction means that workers share a GPU.
        retries: how often a unit is tried again after its worker died.
        remedy: advice for the error message if workers keep dying.
    """

    most: int | None = None
    cpus: int = 1
    gpus: float = 0
    retries: int = 3
    remedy: str = "use nodes with more memory"


class Executor(Protocol):
    """An object that runs the independent units of jobs.

    It is a context manager. Its workers exist only inside the `with` block. Methods raise UserError if a unit of work raises
    it. They raise Interrupted after a result if the run must stop.
    """

    def __enter__(self) -> Self:
        """Make the executor ready for use."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stop the workers."""
        ...

    def check(self) -> None:
        """Check that there are nodes to run units on.

        Raises:
            UserError: if there are none and none can be added, so that units would wait for ever.
        """
        ...

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Call `work(index, unit)` for every unit. Each call takes one CPU.

        Args:
            units: the units of work by index. They must be picklable.
            work: function that does a unit of work, given its index and the unit.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The index and the result of each unit, in the order in which units finish.
        """
        ...

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Do all units of work, with workers that load something heavy once and then do one unit after the other.

        Args:
            units: the units of work by index. They must be picklable.
            make: function that each worker calls once with the number of CPU threads it may use. It returns the function that
                does a unit.
            actors: number of workers and resources of each.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if no node has room for a worker, or a unit still fails after all retries because its workers die.
        """
        ...

    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """Run a function on another node (or in this process) and pass on its items as soon as they come.

        Args:
            work: picklable function that returns an iterable.
            cpus: number of CPUs that the function takes.
            gpus: number of GPUs that the function takes.
            training: whether to run it on a node for training. Otherwise it runs on a node for data. This matters only if the
                settings name different nodes for the two.

        Yields:
            The items of `work()`.
        """
        ...
