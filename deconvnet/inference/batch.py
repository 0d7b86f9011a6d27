"""Labelling a folder of photographs with a registered model: a job of workers that hold it, a part of the table at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import cv2
import numpy as np

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference.predictions_table import PREDICTIONS, TABLE, Item, Plan, State
from deconvnet.inference.saved_ensemble import SavedEnsemble, read_options
from infra import storage
from infra.errors import BadInput
from infra.runtime.executor import Actors, Executor, Work
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask

_OVERLAY_QUALITY = 90


def label_photographs(
    plan: Plan, output: str, model: str, executor: Executor, actors: Actors, *, max_pixels: int | None = None
) -> list[tables.Part]:
    """Write the plan's masks and overlays, and the parts of its table; those that a killed run finished are not made again.

    model: folder of an ensemble that every node sees. Each actor has as many torch threads as CPUs. Returns the parts in order.
    Raises UserError where no node has room for an actor, or actors die over a part again and again.
    """
    table, fingerprint, units = storage.join(output, TABLE), plan.fingerprint, plan.units
    done = tables.parts_done(table, fingerprint)
    todo = {i: unit for i, unit in enumerate(units) if tables.part_name(fingerprint, i) not in done}
    maker = _Maker(plan.state, output, model, max_pixels, "cuda" if actors.gpus else "cpu")
    actors = replace(actors, remedy="lower compute.actors or max_pixels, or use larger nodes; finished parts are kept")
    for _ in executor.map_actors(todo, partial(_parts_by, maker, fingerprint), actors, title="segmenting", unit="parts"):
        pass
    return [tables.read_part(table, fingerprint, i) for i in range(len(units))]


def _parts_by(maker: "_Maker", fingerprint: str, threads: int) -> Work[None]:
    """The work of a worker that holds the model: makes the part of each unit."""
    maker.threads = threads

    def work(index: int, items: Sequence[Item]) -> None:
        tables.write_part(maker.table, fingerprint, index, maker.rows(items), PREDICTIONS)

    return work


class _Maker:
    """What makes the rows of a part. The model is loaded when the first photograph needs it, and then held."""

    def __init__(self, state: State, output: str, model: str, max_pixels: int | None, device: str) -> None:
        self.state, self.output, self.model, self.max_pixels, self.device = state, output, model, max_pixels, device
        self.threads = 1
        self.table = storage.join(output, TABLE)

    @cached_property
    def ensemble(self) -> SavedEnsemble:
        import torch

        torch.set_num_threads(self.threads)
        cv2.setNumThreads(1)
        return SavedEnsemble(self.model, self.device, self.max_pixels)

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
        labelled = self.ensemble.predict(self._read(item))
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
