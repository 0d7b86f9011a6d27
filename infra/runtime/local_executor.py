"""An executor that runs the units of work of a job on this machine, without Ray.

Ordinary units run in a pool of processes. Units that share something costly to prepare, such as a network, run in this process.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor as Pool
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import Any

from infra.errors import UserError
from infra.runtime.executor import Actors, Executor, Item, Result, Work


class LocalExecutor(Executor):
    """An `Executor` that runs units of work on this machine, without Ray.

    `map` uses a pool of processes. `map_actors` and `stream` work in this process. With a single CPU everything runs in this
    process, so that a debugger can be used.
    """

    def __init__(self, cpus: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Make an executor. Its processes are started later, when they are first needed.

        Args:
            cpus: number of processes in the pool, and number of threads for `map_actors`. None for all CPUs that this process may
                use.
            should_stop: function that is called after each unit of work. If it returns True, the executor raises Interrupted, as
                soon as the units that have begun are finished.
        """
        super().__init__(should_stop)
        self.cpus = available_cpus() if cpus is None else cpus
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, *error: object) -> None:
        """Stop the processes. Units of work that have begun are finished first, and the others are cancelled.

        Args:
            *error: type, value and traceback of the exception that ended the `with` block; unused.
        """
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Run a function on every unit of work, in a pool of processes.

        Further calls use the same processes until the `with` block of the executor ends. With a single CPU, this process does all
        units. See `Executor.map` for the arguments, results and errors. A process that dies is a UserError too.
        """
        if self.cpus == 1 or not units:
            yield from self._until_stopped(_one_by_one(units, work), len(units), title, unit)
            return
        if self._pool is None:
            # Spawned, because a forked process would inherit locks that other threads hold.
            self._pool = ProcessPoolExecutor(self.cpus, multiprocessing.get_context("spawn"), initializer=_begin_process)
        try:
            yield from self._until_stopped(_in_pool(self._pool, units, work), len(units), title, unit)
        except BrokenProcessPool as error:
            self._pool = None
            raise UserError(f"{title}: a process died (out of memory?): lower cluster.num_cpus") from error

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Do all units of work in this process, with a function that is prepared once.

        If `actors.gpus` is above 0, several threads do units at the same time to keep the GPU busy. Otherwise one unit is done
        at a time, and the network itself uses all CPUs. No other attribute of `actors` is used. See `Executor.map_actors` for the
        other arguments, the results and the errors.
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
        """Run a function that returns an iterable in this process, and yield each item as soon as it is made.

        Args:
            work: function without arguments that returns an iterable.
            cpus: unused here.
            gpus: unused here.
            training: unused here.

        Yields:
            The items of the iterable, in order.

        Raises:
            Interrupted: after an item, if a stop was requested.
        """
        for item in work():
            yield item
            self._check_stop("stopped")


def _begin_process() -> None:
    """Initialise a process of the pool: ignore SIGINT, and exit when the parent process dies.

    On Ctrl-C, the terminal sends SIGINT to all processes of the command. Only the parent should react; the pool finishes its
    current units.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the process that started this one has ended, and end this one."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def available_cpus() -> int:
    """Return the number of CPUs that this process may use. If the system can't tell, return the number of CPUs of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(units: Mapping[int, Any], work: Work[Result]) -> Generator[tuple[int, Result]]:
    """Do all units of work in this thread, in order.

    Args:
        units: the units of work. Each key is the index (position in the job) of its unit.
        work: function that does one unit. It is called as `work(index, unit)`.

    Yields:
        The index and the result of each unit, in the order of `units`.
    """
    for index, item in units.items():
        yield index, work(index, item)


def _in_pool(pool: Pool, units: Mapping[int, Any], work: Work[Result]) -> Generator[tuple[int, Result]]:
    """Do all units of work in a pool. If the caller stops iterating early, units that have not begun are cancelled.

    Args:
        pool: a pool of processes or threads from `concurrent.futures`.
        units: the units of work. Each key is the index (position in the job) of its unit.
        work: function that does one unit. It is called as `work(index, unit)`.

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
