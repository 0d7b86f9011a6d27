"""An executor that runs the units of work of a job on a Ray cluster, as tasks or in actors of Ray Data."""

import gc
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import cached_property, partial
from typing import Any, Self

from infra.errors import UserError, find_user_error, forget_frames
from infra.live_metrics import RayMetrics
from infra.runtime import cluster
from infra.runtime.executor import Actors, Executor, Item, Result, Work
from infra.settings import ClusterSettings

TASK_RETRIES = 3
"""How often a unit of work that runs as a task is tried again if its process or its node died."""


class RayExecutor(Executor):
    """An `Executor` that runs units of work on the nodes of a Ray cluster.

    Entering its `with` block joins the cluster, or starts Ray on this machine. Actors with a GPU, and tasks for training, run on
    nodes with the labels in the setting `cluster.training_nodes`. All other tasks and actors run on nodes with the labels in the
    setting `cluster.data_nodes`.
    """

    def __init__(self, settings: ClusterSettings, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Make an executor. Ray is not contacted yet.

        Args:
            settings: settings of the cluster, with the labels of its nodes.
            should_stop: function that is called after each unit of work. If it returns True, the executor raises Interrupted.
        """
        super().__init__(should_stop)
        self.metrics = RayMetrics()
        self._settings = settings
        self._connection = ExitStack()

    def __enter__(self) -> Self:
        """Connect to Ray, and return the executor.

        Raises:
            UserError: if the cluster can't be joined, or has no node with the labels in the setting `cluster.data_nodes`.
        """
        with ExitStack() as connection:
            connection.enter_context(cluster.connected(self._settings))
            cluster.check_nodes(self._settings, "data_nodes")
            self._connection = connection.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect from Ray, and stop it if `__enter__` started it on this machine.

        Args:
            *error: type, value and traceback of the exception that ended the `with` block, or None three times.
        """
        self._connection.close()

    def map(
        self, units: Mapping[int, Any], work: Work[Result], *, title: str, unit: str = "parts"
    ) -> Iterator[tuple[int, Result]]:
        """Run a function on every unit of work. Each call is a Ray Data task that takes one CPU.

        See `Executor.map` for the arguments, results and errors. A unit whose process dies in every attempt is a UserError, too.
        """
        if not units:
            return
        from infra.runtime.ray_compat import map_retries

        with map_retries(max_retries=TASK_RETRIES) as retries:
            done = _dataset(units, self._nodes(training=False)).map(partial(_answer, work), num_cpus=1, **retries)
        try:
            yield from self._until_stopped(_results(done), len(units), title, unit)
        except _deaths() as error:
            raise _died(title, TASK_RETRIES, unit, Actors.remedy) from error

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Work[Result]], actors: Actors, *, title: str, unit: str
    ) -> Iterator[tuple[int, Result]]:
        """Do all units of work in parallel, in Ray Data actors that prepare once.

        See `Executor.map_actors` for the arguments, results and errors.
        """
        import ray.data
        import ray.exceptions

        if not units:
            return
        from infra.runtime.ray_compat import map_retries

        nodes = self._nodes(training=actors.gpus > 0)
        fits = len(units) if cluster.can_autoscale(self._settings) else cluster.actor_slots(nodes, actors.cpus, actors.gpus)
        if not fits:
            raise UserError(_no_room(actors, nodes))
        with map_retries(max_task_retries=actors.retries) as retries:
            done = _dataset(units, nodes).map(
                _Actor,
                fn_constructor_args=(make, actors.cpus),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=min(fits if actors.max_workers is None else actors.max_workers, len(units))
                ),
                num_cpus=actors.cpus,
                num_gpus=actors.gpus or None,
                **retries,
            )
        try:
            yield from self._until_stopped(_results(done), len(units), title, unit)
        except ray.exceptions.RayActorError as error:
            raise _died(title, actors.retries, unit, actors.remedy) from error

    def stream(
        self, work: Callable[[], Iterable[Item]], *, cpus: int = 1, gpus: float = 0, training: bool = False
    ) -> Iterator[Item]:
        """Run a function that returns an iterable as a single Ray task, and yield each item as soon as it is made.

        Args:
            work: picklable function without arguments that returns an iterable.
            cpus: number of CPUs that the task takes.
            gpus: number of GPUs that the task takes.
            training: True to use nodes with the labels in the setting `cluster.training_nodes`, False to use nodes with the
                labels in the setting `cluster.data_nodes`.

        Yields:
            The items of the iterable, in order.

        Raises:
            UserError: if the function raises UserError, or its process dies in every attempt.
            Interrupted: after an item, if a stop was requested.
        """
        import ray
        import ray.exceptions

        nodes = self._nodes(training)
        task = ray.remote(_items).options(num_cpus=cpus, num_gpus=gpus, max_retries=TASK_RETRIES, label_selector=nodes or None)
        try:
            for reference in task.remote(work):
                yield ray.get(reference)
                self._check_stop("stopped")
        except ray.exceptions.RayTaskError as error:  # Ray wraps a UserError in an error whose message is a traceback
            raise find_user_error(error.cause) or error from error
        except _deaths() as error:
            raise UserError(f"the processes of a task died {TASK_RETRIES + 1} times (out of memory?): {Actors.remedy}") from error

    def _nodes(self, training: bool) -> dict[str, str]:
        """Return the Ray labels, as values by key, that a node must have for a kind of work; {} for any node.

        Args:
            training: True for the labels in the setting `cluster.training_nodes`, False for the labels in `cluster.data_nodes`.
        """
        return self._settings.selector("training_nodes" if training else "data_nodes")


def _dataset(units: Mapping[int, Any], nodes: Mapping[str, str]) -> Any:
    """Make a Ray dataset with one row for each unit of work.

    Each row is in a block of its own, so that a Ray task receives only the unit that it does.

    Args:
        units: the units of work. Each key is the index (position in the job) of its unit.
        nodes: Ray labels of the nodes that may do the work; {} for any node. They are set for the whole job, not only for the map
            operator, so that an autoscaler is asked only for nodes with these labels.

    Returns:
        The dataset. Each row has the "index" of a unit and the pickled "unit".
    """
    import ray.data

    from infra.runtime.ray_compat import LabelledNodesCallback

    items = [{"index": index, "unit": pickle.dumps(unit)} for index, unit in units.items()]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.execution_options.label_selector = dict(nodes) or None
    dataset.context.custom_execution_callback_classes = [LabelledNodesCallback]
    return dataset


def _results(done: Any) -> Generator[tuple[int, Any]]:
    """Run a Ray Data job, and yield the unpickled results of its units of work. The job ends with the iteration.

    Args:
        done: Ray dataset, not yet computed, with one row for each unit of work. "index" is the index of the unit. "result" is
            the pickled result, or the pickled UserError that the unit raised.

    Yields:
        The index and the result of each unit, in the order in which units finish.

    Raises:
        UserError: if a unit raised UserError.
    """
    with closing(iter(done.iter_rows())) as rows:
        try:
            for row in rows:
                result = pickle.loads(row["result"])
                if isinstance(result, UserError):
                    raise result
                yield row["index"], result
        except Exception as error:
            # An actor keeps its CPUs as long as it is referenced. The frames of Ray Data's error reference it, so drop them.
            forget_frames(error)
            gc.collect()
            raise


def _items(work: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Yield the items of the iterable that a function returns. `RayExecutor.stream` runs this as a Ray task.

    This function is a generator, so Ray sends each item as soon as it is made.

    Args:
        work: function without arguments that returns an iterable.
    """
    yield from (item for item in work())  # a generator, because Ray calls its method `send`


def _answer(work: Work[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Do one unit of work in a Ray Data task or actor.

    If the unit raises UserError, the error is returned as the result. If it were raised, Ray Data would keep only its traceback.

    Args:
        work: function that does one unit. It is called as `work(index, unit)`.
        row: row of the dataset of units: the "index" of the unit and the pickled "unit".

    Returns:
        A row with the "index" of the unit and its "result": the pickled return value of `work`, or the pickled UserError.
    """
    try:
        result = work(row["index"], pickle.loads(row["unit"]))
    except UserError as error:
        result = error
    return {"index": row["index"], "result": pickle.dumps(result)}


class _Actor:
    """A worker of a Ray Data actor pool. It prepares once, for example by loading a network, and then does many units.

    It prepares with its first unit. If it died in its constructor, Ray would restart it for ever.
    """

    def __init__(self, make: Callable[[int], Work[Any]], threads: int) -> None:
        """Store how the worker prepares, which is by calling `make(threads)`.

        Args:
            make: function that prepares the work and returns the function that does a unit.
            threads: number of CPU threads that the worker may use.
        """
        self._make, self._threads = make, threads

    @cached_property
    def _work(self) -> Work[Any]:
        """Return the function that does a unit. It is made when it is first needed."""
        return self._make(self._threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one unit of work.

        Args:
            row: row of the dataset of units: the "index" of the unit and the pickled "unit".

        Returns:
            A row with the "index" of the unit and its "result": the pickled return value, or the pickled UserError.
        """
        return _answer(lambda index, unit: self._work(index, unit), row)


def _deaths() -> tuple[type[Exception], ...]:
    """Return Ray's errors for a task whose processes or nodes died at each attempt."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    return NodeDiedError, OutOfMemoryError, WorkerCrashedError


def _died(title: str, retries: int, unit: str, remedy: str) -> UserError:
    """Return the error for a unit of work whose processes died at each attempt.

    Args:
        title: name of the work.
        retries: number of attempts after the first one.
        unit: plural noun for the units of work, such as "parts".
        remedy: advice to the user.
    """
    return UserError(
        f"{title}: processes died {retries + 1} times while they worked on one of the {unit} (out of memory?): {remedy}"
    )


def _no_room(actors: Actors, nodes: Mapping[str, str]) -> str:
    """Return the message of the error that is raised if no node has room for an actor.

    Args:
        actors: the resources that each actor needs.
        nodes: Ray labels of the nodes that may run the actors; {} for any node.
    """
    labels = ",".join(f"{key}={value}" for key, value in nodes.items())
    which = f"no alive node labelled {labels}" if labels else "no node of this Ray"
    needs = ("1 CPU" if actors.cpus == 1 else f"{actors.cpus} CPUs") + (f" and {actors.gpus:g} of a GPU" if actors.gpus else "")
    return f"{which} has room for a process of {needs}: start one that has, or request less"
