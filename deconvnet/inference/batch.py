"""Predict a folder of images with a saved ensemble: a job whose workers each hold the model and write parts of the table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import cv2
import numpy as np

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference.predictions_table import PREDICTIONS, TABLE, OutputState, Plan, Task
from deconvnet.inference.saved_ensemble import SavedEnsemble, read_options
from infra import storage
from infra.errors import BadInput
from infra.runtime.executor import Actors, Executor, Work
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask

_OVERLAY_QUALITY = 90


def predict_images(
    plan: Plan, output: str, model: str, executor: Executor, actors: Actors, max_pixels: int | None = None
) -> list[tables.Part]:
    """Write the masks and overlays of a plan, and the parts of its table. Parts that a killed run finished are kept.

    Args:
        plan: the images and what is to be done with each.
        output: folder or s3:// prefix of the output.
        model: folder of the saved ensemble; every node must be able to read it.
        executor: runs the workers.
        actors: how many workers, and what each takes; with GPUs they predict on "cuda".
        max_pixels: larger images are rejected; None for the ensemble's own limit.

    Returns:
        The parts of the table, in order, not yet committed.

    Raises:
        UserError: if no node has room for a worker, or workers die over a part again and again.
    """
    table, fingerprint, units = storage.join(output, TABLE), plan.fingerprint, plan.units
    done = tables.parts_done(table, fingerprint)
    left = {i: unit for i, unit in enumerate(units) if tables.part_name(fingerprint, i) not in done}
    job = _Job(plan.state, output, model, max_pixels, "cuda" if actors.gpus else "cpu", fingerprint)
    actors = replace(actors, remedy="lower compute.actors or max_pixels, or use larger nodes; finished parts are kept")
    for _ in executor.map_actors(left, partial(_make_worker, job), actors, title="segmenting", unit="parts"):
        pass
    return [tables.read_part(table, fingerprint, i) for i in range(len(units))]


@dataclass(frozen=True)
class _Job:
    """What all workers of a job have in common; the fields are those of `predict_images` and its plan."""

    state: OutputState
    output: str
    model: str
    max_pixels: int | None
    device: str
    fingerprint: str


def _make_worker(job: _Job, threads: int) -> Work[None]:
    """Create a worker; return the function that writes the part of the table for a unit, a list of tasks."""
    writer = _RowMaker(job, threads)

    def work(index: int, tasks: Sequence[Task]) -> None:
        tables.write_part(writer.table, job.fingerprint, index, writer.rows(tasks), PREDICTIONS)

    return work


class _RowMaker:
    """Makes the rows of tasks. The ensemble is loaded when the first image needs it, and kept."""

    def __init__(self, job: _Job, threads: int) -> None:
        """Load nothing yet; `threads` is the number of CPU threads that prediction may use."""
        self.job, self.threads = job, threads
        self.table = storage.join(job.output, TABLE)

    @cached_property
    def ensemble(self) -> SavedEnsemble:
        """The saved ensemble."""
        import torch

        torch.set_num_threads(self.threads)
        cv2.setNumThreads(1)
        return SavedEnsemble(self.job.model, self.job.device, self.job.max_pixels)

    @cached_property
    def classes(self) -> Sequence[str]:
        """Class names by id; reading them does not load the ensemble."""
        return list(read_options(self.job.model)["classes"])

    def rows(self, tasks: Sequence[Task]) -> Iterator[dict[str, Any] | tables.Reject]:
        """Predict images, or take over their earlier rows.

        Args:
            tasks: images of one part of the table.

        Yields:
            A row of `PREDICTIONS`, or a reject, for each task in order. Its mask and overlay are written before.
        """
        known = self._read_known_rows({task.part for task in tasks if task.part})
        for task in tasks:
            name = task.image.name
            try:
                if task.image.refused:
                    raise BadInput(task.image.refused)
                if not task.part:
                    yield self._predict(task)
                    continue
                if task.draw_overlay:
                    mask = decode_mask(storage.read_bytes(storage.join(self.job.output, task.mask_path)))
                    self._draw_overlay(task, decode_image(self._read_image(task)), mask)
            except BadInput as error:
                yield tables.Reject(name, storage.join(self.job.state.input, name), "predict", str(error))
            else:
                yield {**known[name, task.part], "overlay": task.overlay_path if task.has_overlay else None}

    def _read_known_rows(self, parts: set[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """Read the rows that earlier runs wrote to these parts, by image_id and part."""
        found = ((part, tables.iter_rows(self.table, part=tables.Part(part, []))) for part in sorted(parts))
        return {(row["image_id"], part): row for part, rows in found for row in rows}

    def _predict(self, task: Task) -> dict[str, Any]:
        """Predict an image, write its mask and overlay, and return its row."""
        prediction = self.ensemble.predict(self._read_image(task))
        mask = prediction.mask
        storage.write_bytes(storage.join(self.job.output, task.mask_path), encode_mask(mask, VOC_PALETTE))
        if task.draw_overlay:
            self._draw_overlay(task, prediction.image, mask)
        counts = np.bincount(mask.ravel(), minlength=len(self.classes))
        present = np.flatnonzero(counts)
        state = self.job.state
        return {
            "image_id": task.image.name,
            "path": storage.join(state.input, task.image.name),
            "width": mask.shape[1],
            "height": mask.shape[0],
            "classes": [self.classes[int(i)] for i in present],
            "shares": (counts[present] / mask.size).tolist(),
            "confidence": prediction.confidence,
            "mask": task.mask_path,
            "overlay": task.overlay_path if task.has_overlay else None,
            "model": state.model,
            "model_version": state.model_version,
            "stamp": task.image.stamp,
            "generation": state.generation,
        }

    def _draw_overlay(self, task: Task, image: np.ndarray, mask: np.ndarray) -> None:
        """Write an image with its mask drawn over it."""
        data = encode_jpeg(overlay(image, mask, self.classes), _OVERLAY_QUALITY)
        storage.write_bytes(storage.join(self.job.output, task.overlay_path), data)

    def _read_image(self, task: Task) -> bytes:
        """The image file's bytes; raises BadInput if it cannot be read."""
        try:
            return storage.read_bytes(storage.join(self.job.state.input, task.image.name))
        except FileNotFoundError:
            raise BadInput("it was removed during the run") from None
        except OSError as error:
            raise BadInput(f"can't be read: {error.strerror or error}") from None
