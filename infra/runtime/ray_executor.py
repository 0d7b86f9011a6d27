"""Runs a job's units on a Ray cluster, each as a Ray Data task or by an actor."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

from infra.errors import Interrupted, UserError, find_user_error
from infra.runtime import cluster
from infra.runtime.executor import Actors, Item, Result, Work
from infra.runtime.progress import progress
from infra.settings import ClusterSettings


class RayExecutor:
    """An `Executor` of the nodes of a Ray cluster. Entering it joins the cluster, or starts a Ray on this machine.

    Tasks, and actors without a GPU, run on the nodes of `cluster.data_nodes`; actors with a GPU on those of `cluster.training_nodes`.
    """

    def __init__(self, settings: ClusterSettings, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Connect to nothing yet.

        Args:
            settings: the cluster to join, and the labels of its nodes.
            should_stop: checked after each unit; once True, Interrupted is raised.
        """
        self._settings = settings
        self._should_stop = should_stop
        self._connection = ExitStack()

    def __enter__(self) -> Self:
        self._connection.enter_context(cluster.connected(self._settings))
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def check(self) -> None:
        """Raise UserError if no node has the labels of `cluster.data_nodes`, and none can come."""
        cluster.check_nodes(self._nodes(training=False), "cluster.data_nodes")

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.map`. Each unit is a task of Ray Data."""
        if not units:
            return
        selector = {"label_selector": nodes} if (nodes := self._nodes(training=False)) else {}
        done = _dataset(units).map(partial(_answer, work), num_cpus=1, **selector)
        yield from self._results(done, len(units), title, unit)

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.map_actors`. Each worker is an actor of Ray Data's pool."""
        import ray.data
        import ray.exceptions

        if not units:
            return
        from infra.runtime.ray_compat import actor_retries

        nodes = self._nodes(training=actors.gpus > 0)
        fits = len(units) if cluster.can_autoscale() else cluster.actor_slots(nodes, actors.cpus, actors.gpus)
        if not fits:
            raise UserError(_no_room(actors, nodes))
        with actor_retries(actors.retries) as retries:
            done = _dataset(units).map(
                _Actor,
                fn_constructor_args=(make, actors.cpus),
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors.most or fits, len(units))),
                num_cpus=actors.cpus,
                num_gpus=actors.gpus or None,
                label_selector=nodes or None,
                **retries,
            )
        try:
            yield from self._results(done, len(units), title, unit)
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"{title}: its processes died, {actors.retries + 1} times over one of the {unit} (of too little memory?): "
                f"{actors.remedy}"
            ) from error

    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """See `Executor.stream`. Runs as one Ray task."""
        import ray
        import ray.exceptions

        nodes = self._nodes(training)
        task = ray.remote(_items).options(num_cpus=cpus, num_gpus=gpus, label_selector=nodes or None)
        try:
            for reference in task.remote(work):
                yield ray.get(reference)
                self._check_stop("stopped")
        except ray.exceptions.RayTaskError as error:  # a UserError comes back as one whose message is a traceback
            raise find_user_error(error.cause) or error from error

    def _nodes(self, training: bool) -> dict[str, str]:
        """Labels of the nodes to use; {} for any."""
        return self._settings.selector("training_nodes" if training else "data_nodes")

    def _results(self, done: Any, total: int, title: str, unit: str) -> Iterator[tuple[int, Any]]:
        """Index and result of every row that `_answer` made. Raises the UserError that a row holds."""
        for row in progress(done.iter_rows(), total, title, unit):
            result = pickle.loads(row["result"])
            if isinstance(result, UserError):
                raise result
            yield row["index"], result
            self._check_stop(f"{title}: stopped")

    def _check_stop(self, message: str) -> None:
        """Raise Interrupted if the run is to stop."""
        if self._should_stop():
            raise Interrupted(f"{message}: the same command resumes it")


def _dataset(units: Mapping[int, Any]) -> Any:
    """The Ray dataset of the units, one block each, so that a task is sent its own unit; in its closure it would get all of them."""
    import ray.data

    items = [{"index": index, "unit": pickle.dumps(unit)} for index, unit in units.items()]
    return ray.data.from_items(items, override_num_blocks=len(items))


def _items(work: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """The task of `RayExecutor.stream`: a generator, so that Ray sends each item as it comes."""
    yield from (item for item in work())  # Ray resumes a task's generator by `send`, which the iterator of a list does not have


def _answer(work: Work[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Do a row of `_dataset`: the result is what `work` returns, or the UserError it raises.

    The UserError is returned because Ray Data keeps only the traceback of what a task raises.
    """
    try:
        result = work(row["index"], pickle.loads(row["unit"]))
    except UserError as error:
        result = error
    return {"index": row["index"], "result": pickle.dumps(result)}


class _Actor:
    """What Ray Data makes once in each worker of its pool, and calls for each unit."""

    def __init__(self, make: Callable[[int], Work[Any]], threads: int) -> None:
        self.work = make(threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _answer(self.work, row)


def _no_room(actors: Actors, nodes: Mapping[str, str]) -> str:
    """The message where no node can hold an actor."""
    labels = ",".join(f"{key}={value}" for key, value in nodes.items())
    which = f"no living node labelled {labels}" if labels else "no node of this Ray"
    needs = ("1 CPU" if actors.cpus == 1 else f"{actors.cpus} CPUs") + (f" and {actors.gpus:g} of a GPU" if actors.gpus else "")
    return f"{which} has room for a process of {needs}: start one that has, or request less"
