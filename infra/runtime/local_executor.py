"""An executor that runs the units of a job on this machine, without Ray.

Ordinary units run in a pool of processes. Units that need networks run in this process.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor as Pool
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from multiprocessing import get_context
from typing import Any, Self

from infra.errors import Interrupted, UserError
from infra.runtime.executor import Actors, Item, Result, Work
from infra.runtime.progress import progress


class LocalExecutor:
    """An `Executor` that uses the CPUs of this machine, and its GPU for work with networks.

    With one CPU everything runs in this process, so that a debugger can be used.
    """

    def __init__(self, cpus: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Store the settings. Processes are started by the first call that needs them.

        Args:
            cpus: number of processes, and of threads where networks compute. None: all CPUs that this process may use.
            should_stop: called after each unit of work. If it returns True, Interrupted is raised. Units that have already
                begun are finished first.
        """
        self.cpus = cpus or available_cpus()
        self._should_stop = should_stop
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Return the executor itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the processes. Units that have not begun are cancelled."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def check(self) -> None:
        """Do nothing, because this machine can always run units."""

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Call `work(index, unit)` for every unit of work, in a pool of processes.

        The processes stay for further calls until the `with` block of the executor ends. With a single CPU, this process does
        all units.

        Args:
            units: the units of work by index. They must be picklable.
            work: function that does a unit.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if a unit raises it, or a process dies.
            Interrupted: after a result, if the run must stop.
        """
        if self.cpus == 1 or not units:
            yield from self._until_stopped(_one_by_one(units, work), len(units), title, unit)
            return
        if self._pool is None:  # spawned, because a forked process would inherit locks that other threads hold
            self._pool = ProcessPoolExecutor(self.cpus, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
        try:
            yield from self._until_stopped(_in_pool(self._pool, units, work), len(units), title, unit)
        except BrokenProcessPool as error:
            self._pool = None
            raise UserError(f"{title}: a process died (of too little memory?): lower cluster.num_cpus") from error

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Do all units of work with a single worker in this process, which loads something heavy once.

        If `actors.gpus` is above 0, several threads do units at the same time to keep the GPU busy. Otherwise units are done
        one after the other, and the network itself uses all CPUs.

        Args:
            units: the units of work by index.
            make: function that is called once with the number of CPU threads it may use. It returns the function that does a
                unit.
            actors: resources of the worker. Only `gpus` is used.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if a unit raises it.
            Interrupted: after a result, if the run must stop.
        """
        if not units:
            return
        work = make(self.cpus)
        with ThreadPoolExecutor(self.cpus) if actors.gpus else nullcontext() as pool:
            done = _in_pool(pool, units, work) if pool else _one_by_one(units, work)
            yield from self._until_stopped(done, len(units), title, unit)

    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """Run a function in this process and pass on its items as soon as they come.

        Args:
            work: function that returns an iterable.
            cpus: unused.
            gpus: unused.
            training: unused.

        Yields:
            The items of `work()`.

        Raises:
            Interrupted: after an item, if the run must stop.
        """
        for item in work():
            yield item
            self._check_stop("stopped")

    def _until_stopped(self, done: Iterator[Item], total: int, title: str, unit: str) -> Iterator[Item]:
        """Pass on results and show the progress.

        Args:
            done: the results.
            total: number of results.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The results.

        Raises:
            Interrupted: after a result, if the run must stop.
        """
        for item in progress(done, total, title, unit):
            yield item
            self._check_stop(f"{title}: stopped")

    def _check_stop(self, message: str) -> None:
        """Raise Interrupted if the run must stop.

        Args:
            message: beginning of the error message.
        """
        if self._should_stop():
            raise Interrupted(f"{message}: the same command resumes it")


def available_cpus() -> int:
    """Return the number of CPUs that this process may use. If the system can't tell, return the number of CPUs of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(units: Mapping[int, Any], work: Work[Result]) -> Iterator[tuple[int, Result]]:
    """Do all units of work in this thread, in order.

    Args:
        units: the units of work by index.
        work: function that does a unit of work, given its index and the unit.

    Yields:
        The index and the result of each unit.
    """
    for index, item in units.items():
        yield index, work(index, item)


def _in_pool(pool: Pool, units: Mapping[int, Any], work: Work[Result]) -> Iterator[tuple[int, Result]]:
    """Do all units of work in a pool of processes or threads. If the caller stops early, units that have not begun are cancelled.

    Args:
        pool: the pool.
        units: the units of work by index.
        work: function that does a unit of work, given its index and the unit.

    Yields:
        The index and the result of each unit, in the order in which units finish.
    """
    begun = {pool.submit(work, index, item): index for index, item in units.items()}
    try:
        for future in as_completed(begun):
            yield begun[future], future.result()
    finally:
        for future in begun:
            future.cancel()


def _ignore_interrupts() -> None:
    """Ignore SIGINT in a process of the pool, so that it finishes its unit.

    At Ctrl-C a terminal sends SIGINT to all processes. The parent process then stops the run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
