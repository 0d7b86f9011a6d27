"""The interface of executors, which run the independent pieces of a job in parallel.

There are two: `RayExecutor` uses a Ray cluster, `LocalExecutor` this machine. A job is divided into *units* of work before it
starts, such as the parts of a table or groups of images. Since this division is fixed, the result depends neither on the executor
nor on the number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from infra.errors import Interrupted
from infra.live_metrics import LiveMetrics
from infra.runtime.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[int, Any], Result]
"""A function that does one unit of work, called as `work(index, unit)`. It must be picklable: no lambda, no inner function."""


@dataclass(frozen=True)
class Actors:
    """The number of workers of a job, and the resources of each worker.

    It describes jobs whose workers have to prepare before they can work, for example by loading a network.

    Attributes:
        max_workers: largest number of workers; None for as many as fit.
        cpus: number of CPUs of each worker.
        gpus: number of GPUs of each worker. A fraction lets several workers share a GPU.
        retries: how often a unit of work (an independent piece of the job) is tried again if its worker died.
        remedy: advice to the user, for the error message if workers keep dying.
    """

    max_workers: int | None = None
    cpus: int = 1
    gpus: float = 0
    retries: int = 3
    remedy: str = "use nodes with more memory"


class Executor(ABC):
    """An object that runs a job, which is divided into independent units of work.

    It is a context manager. Its workers exist only inside the `with` block. If a unit of work raises UserError, the method that
    runs it raises UserError, too. If a stop was requested, the methods that yield results raise Interrupted after the next
    result.

    Attributes:
        metrics: metrics of the process that runs the jobs. An executor without Ray exports none.
    """

    metrics = LiveMetrics()

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        """Make an executor that does not run anything yet.

        Args:
            should_stop: function that is called after each result. If it returns True, the executor raises Interrupted.
        """
        self._should_stop = should_stop

    def __enter__(self) -> Self:
        """Make the executor ready for use, and return it."""
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Stop the workers.

        Args:
            *error: type, value and traceback of the exception that ended the `with` block, or None three times.
        """

    @abstractmethod
    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Run a function on every unit of work, in parallel. Each call takes one CPU.

        Args:
            units: the units of work, as picklable objects of any kind. Each key is the index (position in the job) of its unit.
            work: function that does one unit. It is called as `work(index, unit)`, and must be picklable.
            title: name of the work, shown with the progress.
            unit: plural noun for the units, shown with the progress, such as "parts" or "images".

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if a unit raises UserError, or the processes that do it die.
            Interrupted: after a result, if a stop was requested.
        """

    @abstractmethod
    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Do all units of work in parallel, in workers that prepare once, for example by loading a network.

        Args:
            units: the units of work, as picklable objects of any kind. Each key is the index (position in the job) of its unit.
            make: function that prepares a worker and returns the function that does a unit. Each worker calls it once, with the
                number of CPU threads that it may use.
            actors: the number of workers and the resources of each.
            title: name of the work, shown with the progress.
            unit: plural noun for the units, shown with the progress, such as "parts" or "images".

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if a unit raises UserError, no node has room for a worker, or a unit still fails after all retries because
                its workers die.
            Interrupted: after a result, if a stop was requested.
        """

    @abstractmethod
    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """Run a function that returns an iterable, on another node if possible, and yield each item as soon as it is made.

        Args:
            work: picklable function without arguments that returns an iterable.
            cpus: number of CPUs that the function takes.
            gpus: number of GPUs that the function takes.
            training: True to use the nodes that the settings reserve for training, False to use those for data.

        Yields:
            The items of the iterable, in order.

        Raises:
            UserError: if the function raises UserError.
            Interrupted: after an item, if a stop was requested.
        """

    def _until_stopped(self, done: Generator[Item], total: int, title: str, unit: str) -> Iterator[Item]:
        """Yield results unchanged, show the progress, and stop early if a stop was requested.

        Args:
            done: the results of units of work. It is closed at the end, so that the work that is left is given up.
            total: number of results to expect.
            title: name of the work, shown with the progress.
            unit: plural noun for the units, shown with the progress, such as "parts" or "images".

        Yields:
            The items of `done`.

        Raises:
            Interrupted: after a result, if a stop was requested.
        """
        with closing(done):
            for item in progress(done, total, title, unit):
                yield item
                self._check_stop(f"{title}: stopped")

    def _check_stop(self, message: str) -> None:
        """Raise Interrupted if a stop was requested.

        Args:
            message: beginning of the exception's message.
        """
        if self._should_stop():
            raise Interrupted(f"{message}: the same command resumes it")
