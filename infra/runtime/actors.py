"""The one Ray Data job of workers that hold something heavy (networks, say): actors that are given units of work one after another."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from infra.errors import UserError
from infra.runtime.progress import progress
from infra.runtime.tasks import answered, answers, dataset_of

Result = TypeVar("Result")
Work = Callable[[int, Any], Result]


@dataclass(frozen=True)
class Actors:
    """How many, and what each takes.

    most: as many as the cluster holds, where None. nodes: Ray label selector of the nodes they may be on; None for any. retries: of a
    unit whose actor died; one that kills every actor must not keep them dying for ever.
    """

    most: int | None = None
    cpus: int = 1
    gpus: float = 0
    nodes: Mapping[str, str] | None = None
    retries: int = 3


def for_each(
    units: Mapping[int, Any], make: Callable[[], Work[Result]], actors: Actors, *, title: str, kind: str, remedy: str
) -> Iterator[tuple[int, Result]]:
    """`work(index, unit)` of every unit, with their indices as they come; each actor calls `make()` for its `work` once.

    title, kind: what progress calls the work and the units. remedy: what a person may do where a unit kills its actors. Raises
    UserError where `work` raises it, no node has room for an actor, or actors die over a unit again and again.
    """
    import ray
    import ray.exceptions

    from infra.runtime.cluster import may_grow, room

    if not units:
        return
    fits = len(units) if may_grow() else room(actors.nodes or {}, actors.cpus, actors.gpus)
    if not fits:
        raise UserError(_no_room(actors))
    with warnings.catch_warnings():
        # Retries have no argument of their own yet, and what is to go in Ray 2.64 is the only way to say how many.
        warnings.simplefilter("ignore", DeprecationWarning)
        done = dataset_of(units).map(
            _Actor,
            fn_constructor_args=(make,),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors.most or fits, len(units))),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus or None,
            label_selector=dict(actors.nodes) if actors.nodes else None,
            ray_remote_args_fn=lambda: {"max_task_retries": actors.retries},
        )
    try:
        yield from answers(progress(done.iter_rows(), len(units), title, kind))
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"{title}: its processes died, {actors.retries + 1} times over one of the {kind} (of too little memory?): {remedy}"
        ) from error


class _Actor:
    """What Ray Data calls for each unit."""

    def __init__(self, make: Callable[[], Work[Any]]) -> None:
        self.work = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return answered(self.work, row)


def _no_room(actors: Actors) -> str:
    labels = ",".join(f"{key}={value}" for key, value in (actors.nodes or {}).items())
    which = f"no living node labelled {labels}" if labels else "no node of this Ray"
    needs = ("1 CPU" if actors.cpus == 1 else f"{actors.cpus} CPUs") + (f" and {actors.gpus:g} of a GPU" if actors.gpus else "")
    return f"{which} has room for a process of {needs}: start one that has, or ask for less"
