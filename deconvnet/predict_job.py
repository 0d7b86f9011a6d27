"""Labelling a folder of photographs with a registered model: a Ray Data job of actors that hold it, a part of the table at a time."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from deconvnet.data.palette import VOC_PALETTE
from deconvnet.labeller import Labeller, read_options
from deconvnet.overlay import overlay
from deconvnet.predictions import PREDICTIONS, TABLE, Item, Plan, State
from infra import storage, tables
from infra.errors import BadInput, UserError
from infra.images import decode_image, decode_mask, encode_jpeg, encode_mask
from infra.progress import progress
from infra.ray_cluster import may_grow, room

_RETRIES = 3  # of a part whose actor died: a photograph that kills every actor must not keep them dying for ever
_OVERLAY_QUALITY = 90


def label_photographs(
    plan: Plan,
    output: str,
    model: str,
    *,
    max_pixels: int | None = None,
    actors: int | None = None,
    cpus_per_actor: int = 1,
    gpus_per_actor: float = 0,
    nodes: Mapping[str, str] | None = None,
) -> list[tables.Part]:
    """Write the plan's masks and overlays, and the parts of its table; those that a killed run finished are not made again.

    model: folder of an ensemble that every node sees. actors: as many as the cluster holds, where None; each has `cpus_per_actor`
    torch threads. nodes: Ray label selector. Returns the parts in order. Raises UserError where no node has room for an actor, or
    actors die over a part again and again.
    """
    import ray.exceptions

    table, fingerprint, units = storage.join(output, TABLE), plan.fingerprint, plan.units
    done = tables.parts_done(table, fingerprint)
    todo = {i: unit for i, unit in enumerate(units) if tables.part_name(fingerprint, i) not in done}
    if todo:
        fits = room(nodes or {}, cpus_per_actor, gpus_per_actor)
        if not fits and not may_grow():
            raise UserError(_no_room(nodes or {}, cpus_per_actor, gpus_per_actor))
        maker = _Maker(plan.state, output, model, max_pixels, cpus_per_actor, gpus_per_actor)
        made = _dataset(
            todo, maker, fingerprint, min(actors or (len(todo) if may_grow() else fits), len(todo)), nodes
        ).iter_rows()
        try:
            for _ in progress(made, len(todo), "labelling", "parts"):
                pass
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"the processes that label died, {_RETRIES + 1} times over one part (of too little memory?): "
                "lower compute.actors or max_pixels, or use larger nodes; what is labelled is kept"
            ) from error
    return [tables.read_part(table, fingerprint, i) for i in range(len(units))]


def _dataset(
    units: Mapping[int, list[Item]], maker: "_Maker", fingerprint: str, actors: int, nodes: Mapping[str, str] | None
) -> Any:
    """The Ray Data job that makes the parts of `units` when it is consumed."""
    import ray
    import ray.cloudpickle as pickle

    items = [{"index": index, "unit": pickle.dumps(unit)} for index, unit in units.items()]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    with warnings.catch_warnings():
        # Retries have no argument of their own yet, and what is to go in Ray 2.64 is the only way to say how many.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map(
            _Actor,
            fn_constructor_args=(maker, fingerprint),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=maker.cpus,
            num_gpus=maker.gpus or None,
            label_selector=dict(nodes) if nodes else None,
            ray_remote_args_fn=lambda: {"max_task_retries": _RETRIES},
        )


def _no_room(nodes: Mapping[str, str], cpus: int, gpus: float) -> str:
    labels = ",".join(f"{key}={value}" for key, value in nodes.items())
    which = f"no living node labelled {labels}" if labels else "no node of this Ray"
    needs = f"{cpus} CPUs" + (f" and {gpus:g} of a GPU" if gpus else "")
    return f"{which} has room for a process that labels ({needs}): lower compute.cpus_per_actor, or start such a node"


class _Maker:
    """What makes the rows of a part. The model is loaded when the first photograph needs it, and then held."""

    def __init__(self, state: State, output: str, model: str, max_pixels: int | None, cpus: int, gpus: float) -> None:
        self.state, self.output, self.model, self.max_pixels = state, output, model, max_pixels
        self.cpus, self.gpus = cpus, gpus
        self.table = storage.join(output, TABLE)

    @cached_property
    def labeller(self) -> Labeller:
        import torch

        torch.set_num_threads(self.cpus)
        cv2.setNumThreads(1)
        return Labeller(self.model, "cuda" if self.gpus else "cpu", self.max_pixels)

    @cached_property
    def classes(self) -> Sequence[str]:
        return list(read_options(self.model)["classes"])

    def rows(self, items: Sequence[Item]) -> Iterator[dict[str, Any] | tables.Reject]:
        """Rows of `items`, by schema, and rejects, in order; masks and overlays are written before their row is told."""
        known = self._known({item.part for item in items if item.part})
        for item in items:
            name = item.photograph.name
            try:
                if item.photograph.refused:
                    raise BadInput(item.photograph.refused)
                if not item.part:
                    yield self._label(item)
                    continue
                if item.draw:
                    self._draw(item, *self._seen(item))
            except BadInput as error:
                yield tables.Reject(name, storage.join(self.state.input, name), "predict", str(error))
            else:
                yield {**known[name, item.part], "overlay": item.picture if item.overlay else None}

    def _known(self, parts: set[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """The rows of earlier parts, by image_id and part."""
        found = ((part, tables.iter_rows(self.table, part=tables.Part(part, []))) for part in sorted(parts))
        return {(row["image_id"], part): row for part, rows in found for row in rows}

    def _label(self, item: Item) -> dict[str, Any]:
        labelled = self.labeller.label(self._read(item))
        mask = labelled.mask
        storage.write_bytes(storage.join(self.output, item.mask), encode_mask(mask, VOC_PALETTE))
        if item.draw:
            self._draw(item, labelled.image, mask)
        counts = np.bincount(mask.ravel(), minlength=len(self.classes))
        present = np.flatnonzero(counts)
        return {
            "image_id": item.photograph.name,
            "path": storage.join(self.state.input, item.photograph.name),
            "width": mask.shape[1],
            "height": mask.shape[0],
            "classes": [self.classes[int(i)] for i in present],
            "shares": (counts[present] / mask.size).tolist(),
            "confidence": labelled.confidence,
            "mask": item.mask,
            "overlay": item.picture if item.overlay else None,
            "model": self.state.model,
            "model_version": self.state.model_version,
            "stamp": item.photograph.stamp,
            "generation": self.state.generation,
        }

    def _seen(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """A photograph that was labelled before, and its mask."""
        return decode_image(self._read(item)), decode_mask(storage.read_bytes(storage.join(self.output, item.mask)))

    def _draw(self, item: Item, image: np.ndarray, mask: np.ndarray) -> None:
        picture = encode_jpeg(overlay(image, mask, self.classes), _OVERLAY_QUALITY)
        storage.write_bytes(storage.join(self.output, item.picture), picture)

    def _read(self, item: Item) -> bytes:
        try:
            return storage.read_bytes(storage.join(self.state.input, item.photograph.name))
        except FileNotFoundError:
            raise BadInput("it was removed while the others were labelled") from None
        except OSError as error:
            raise BadInput(f"can't be read: {error.strerror or error}") from None


class _Actor:
    """An actor that holds the model and makes parts."""

    def __init__(self, maker: _Maker, fingerprint: str) -> None:
        self.maker, self.fingerprint = maker, fingerprint

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray.cloudpickle as pickle

        items: list[Item] = pickle.loads(row["unit"])
        tables.write_part(self.maker.table, self.fingerprint, row["index"], self.maker.rows(items), PREDICTIONS)
        return {"index": row["index"]}
