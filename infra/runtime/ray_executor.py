"""An executor that runs the units of a job on a Ray cluster, as tasks or in actors of Ray Data."""

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
    """An `Executor` that uses the nodes of a Ray cluster.

    Entering its `with` block joins the cluster, or starts Ray on this machine. Tasks and actors without a GPU run on the nodes
    that `cluster.data_nodes` names. Actors with a GPU run on the nodes that `cluster.training_nodes` names.
    """

    def __init__(self, settings: ClusterSettings, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Store the settings without connecting to Ray.

        Args:
            settings: settings of the cluster, with the labels of its nodes.
            should_stop: called after each unit of work. If it returns True, Interrupted is raised.
        """
        self._settings = settings
        self._should_stop = should_stop
        self._connection = ExitStack()

    def __enter__(self) -> Self:
        """Connect to Ray."""
        self._connection.enter_context(cluster.connected(self._settings))
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect from Ray. If it was started on this machine, it is stopped."""
        self._connection.close()

    def check(self) -> None:
        """Check that a node has the labels of `cluster.data_nodes`, or may be added later.

        Raises:
            UserError: if there is no such node and none can be added.
        """
        cluster.check_nodes(self._nodes(training=False), "cluster.data_nodes")

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Call `work(index, unit)` for every unit of work, each in a Ray Data task with one CPU.

        Args:
            units: the units of work by index. They must be picklable.
            work: function that does a unit. It must be picklable.
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
        selector = {"label_selector": nodes} if (nodes := self._nodes(training=False)) else {}
        done = _dataset(units).map(partial(_answer, work), num_cpus=1, **selector)
        yield from self._results(done, len(units), title, unit)

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Do all units of work with a pool of Ray Data actors. Each actor loads something heavy once.

        Args:
            units: the units of work by index. They must be picklable.
            make: function that each actor calls once with the number of CPU threads it may use. It returns the function that
                does a unit.
            actors: number of actors and resources of each.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if a unit raises it, no node has room for an actor, or a unit still fails after all retries because its
                actors die.
            Interrupted: after a result, if the run must stop.
        """
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
        """Run a function as a single Ray task and pass on its items as soon as they come.

        Args:
            work: picklable function that returns an iterable.
            cpus: number of CPUs that the task takes.
            gpus: number of GPUs that the task takes.
            training: whether to run it on a node of `cluster.training_nodes` instead of `cluster.data_nodes`.

        Yields:
            The items of `work()`.

        Raises:
            UserError: if the function raises it.
            Interrupted: after an item, if the run must stop.
        """
        import ray
        import ray.exceptions

        nodes = self._nodes(training)
        task = ray.remote(_items).options(num_cpus=cpus, num_gpus=gpus, label_selector=nodes or None)
        try:
            for reference in task.remote(work):
                yield ray.get(reference)
                self._check_stop("stopped")
        except ray.exceptions.RayTaskError as error:  # Ray wraps a UserError in an error whose message is a traceback
            raise find_user_error(error.cause) or error from error

    def _nodes(self, training: bool) -> dict[str, str]:
        """Return the labels of the nodes to use; {} for any node.

        Args:
            training: whether to use the nodes for training instead of the nodes for data.
        """
        return self._settings.selector("training_nodes" if training else "data_nodes")

    def _results(self, done: Any, total: int, title: str, unit: str) -> Iterator[tuple[int, Any]]:
        """Pass on the results of a Ray Data job and show the progress.

        Args:
            done: Ray dataset with the rows that `_answer` returns.
            total: number of rows.
            title: name of the work in the progress display.
            unit: plural noun for the units in the progress display.

        Yields:
            The index and the result of each unit, in the order in which units finish.

        Raises:
            UserError: if a unit raised it.
            Interrupted: after a result, if the run must stop.
        """
        for row in progress(done.iter_rows(), total, title, unit):
            result = pickle.loads(row["result"])
            if isinstance(result, UserError):
                raise result
            yield row["index"], result
            self._check_stop(f"{title}: stopped")

    def _check_stop(self, message: str) -> None:
        """Raise Interrupted if the run must stop.

        Args:
            message: beginning of the error message.
        """
        if self._should_stop():
            raise Interrupted(f"{message}: the same command resumes it")


def _dataset(units: Mapping[int, Any]) -> Any:
    """Return a Ray dataset with a row for each unit. A row has the unit's "index" and the pickled "unit".

    Each unit is a block of its own, so a task is only sent its own unit. If the units were in the closure of the task's
    function, every task would get all of them.

    Args:
        units: the units of work by index.
    """
    import ray.data

    items = [{"index": index, "unit": pickle.dumps(unit)} for index, unit in units.items()]
    return ray.data.from_items(items, override_num_blocks=len(items))


def _items(work: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Iterate over the items that a function returns. This is the Ray task behind `RayExecutor.stream`.

    It is a generator, so that Ray sends each item as soon as it is made.

    Args:
        work: function that returns an iterable.
    """
    yield from (item for item in work())  # a generator, because Ray calls its method `send`


def _answer(work: Work[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Do one unit of work, given as a row of the dataset that `_dataset` returns.

    A UserError is returned rather than raised, because Ray Data keeps only the traceback of an error that a task raises.

    Args:
        work: function that does a unit of work, given its index and the unit.
        row: the unit's "index" and the pickled "unit".

    Returns:
        The "index", and as "result" the pickled return value of `work` or the pickled UserError.
    """
    try:
        result = work(row["index"], pickle.loads(row["unit"]))
    except UserError as error:
        result = error
    return {"index": row["index"], "result": pickle.dumps(result)}


class _Actor:
    """A worker of a Ray Data actor pool. It loads something heavy once and then does one unit after the other."""

    def __init__(self, make: Callable[[int], Work[Any]], threads: int) -> None:
        """Load what the worker needs.

        Args:
            make: function that gets the number of CPU threads and returns the function that does a unit.
            threads: number of CPU threads that the worker may use.
        """
        self.work = make(threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one unit of work.

        Args:
            row: the unit's "index" and the pickled "unit".

        Returns:
            The "index", and as "result" the pickled result of the unit or the pickled UserError that it raised.
        """
        return _answer(self.work, row)


def _no_room(actors: Actors, nodes: Mapping[str, str]) -> str:
    """Return the error message for the case that no node has room for an actor.

    Args:
        actors: resources of an actor.
        nodes: labels of the nodes that may run it; {} for any node.
    """
    labels = ",".join(f"{key}={value}" for key, value in nodes.items())
    which = f"no living node labelled {labels}" if labels else "no node of this Ray"
    needs = ("1 CPU" if actors.cpus == 1 else f"{actors.cpus} CPUs") + (f" and {actors.gpus:g} of a GPU" if actors.gpus else "")
    return f"{which} has room for a process of {needs}: start one that has, or request less"
