"""Runs a job's units on this machine without Ray: in a pool of processes, and in this process for work that holds networks."""

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
    """An `Executor` of this machine's CPUs.

    With one CPU everything runs in this process, so a debugger can stop in it.
    """

    def __init__(self, cpus: int | None = None, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Start nothing yet.

        Args:
            cpus: number of processes, and of threads where networks compute; None for all CPUs that this process may use.
            should_stop: checked after each unit; once True, Interrupted is raised. Units that have begun are finished.
        """
        self.cpus = cpus or available_cpus()
        self._should_stop = should_stop
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def check(self) -> None:
        """Do nothing: this machine is there."""

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.map`. Each unit runs in one of `cpus` processes, which stay until the executor is left."""
        if self.cpus == 1 or not units:
            yield from self._until_stopped(_one_by_one(units, work), len(units), title, unit)
            return
        if self._pool is None:  # spawned, because a forked process would share this one's threads and locks
            self._pool = ProcessPoolExecutor(self.cpus, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
        try:
            yield from self._until_stopped(_in_pool(self._pool, units, work), len(units), title, unit)
        except BrokenProcessPool as error:
            self._pool = None
            raise UserError(f"{title}: a process died (of too little memory?): lower cluster.num_cpus") from error

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.map_actors`. One worker in this process: with a GPU, `cpus` threads keep it busy; else the network's own do."""
        if not units:
            return
        work = make(self.cpus)
        with ThreadPoolExecutor(self.cpus) if actors.gpus else nullcontext() as pool:
            done = _in_pool(pool, units, work) if pool else _one_by_one(units, work)
            yield from self._until_stopped(done, len(units), title, unit)

    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """See `Executor.stream`. Runs in this process."""
        for item in work():
            yield item
            self._check_stop("stopped")

    def _until_stopped(self, done: Iterator[Item], total: int, title: str, unit: str) -> Iterator[Item]:
        """Pass results on with a progress display, until the run is to stop."""
        for item in progress(done, total, title, unit):
            yield item
            self._check_stop(f"{title}: stopped")

    def _check_stop(self, message: str) -> None:
        """Raise Interrupted if the run is to stop."""
        if self._should_stop():
            raise Interrupted(f"{message}: the same command resumes it")


def available_cpus() -> int:
    """Count the CPUs that this process may use; on systems that can't tell, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(units: Mapping[int, Any], work: Work[Result]) -> Iterator[tuple[int, Result]]:
    """Index and result of every unit, in order, computed in this thread."""
    for index, item in units.items():
        yield index, work(index, item)


def _in_pool(pool: Pool, units: Mapping[int, Any], work: Work[Result]) -> Iterator[tuple[int, Result]]:
    """Index and result of every unit as they finish; those that have not begun are cancelled when the caller stops."""
    begun = {pool.submit(work, index, item): index for index, item in units.items()}
    try:
        for future in as_completed(begun):
            yield begun[future], future.result()
    finally:
        for future in begun:
            future.cancel()


def _ignore_interrupts() -> None:
    """Let a process of the pool finish its unit at Ctrl-C, which a terminal sends to all processes; the parent stops the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
