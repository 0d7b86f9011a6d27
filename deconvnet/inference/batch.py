"""Predict a folder of images with a saved ensemble.

The images are split into groups, and each group becomes one part (Parquet file) of the table `predictions`. Each worker holds the
ensemble (DeconvNet, FCN-8s and the CRF) in memory. For each group that it is given, it writes the masks, the overlays, the
confidence maps and the part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Lock
from typing import Any

import cv2
import numpy as np

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import class_palette
from deconvnet.inference.perceptual_hash import perceptual_hash
from deconvnet.inference.predictions_table import PREDICTIONS, TABLE, UNREADABLE, OutputState, Plan, Task
from deconvnet.inference.saved_ensemble import SavedEnsemble, read_options
from deconvnet.inference.scaling import fit_in_jpeg
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.executor import Actors, Executor
from infra.storage import tables
from infra.storage.guarded import LockGuard
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask
from proposals.masks import check_masks

_OVERLAY_QUALITY = 90


def predict_images(
    plan: Plan, output: str, model: str, guard: LockGuard, executor: Executor, actors: Actors, max_pixels: int | None = None
) -> list[tables.Part]:
    """Predict the images of a plan and write their masks, overlays, confidence maps and the parts of the table `predictions`.

    A part is one Parquet file of the table. Images whose predictions are up to date, also those that an interrupted run has
    predicted, are not predicted again: their rows are copied. The call returns when all parts are written.

    Args:
        plan: the images and what to do with each, see `make_plan`.
        output: folder or bucket prefix of the output.
        model: folder of the saved ensemble (both networks and their options). Every node must be able to read it.
        guard: writes the files of images, as long as no other run has taken the lock of the output folder.
        executor: runs the workers.
        actors: number of workers and the resources of each. Workers that have a GPU predict on it.
        max_pixels: images with more pixels are rejected; None for the limit stored with the ensemble.

    Returns:
        Summaries of the table's parts, in order. The table is not valid until they are passed to `commit_predictions`.

    Raises:
        UserError: if no node has room for a worker, workers die repeatedly over the same part, or a mask from which an overlay is
            to be drawn was edited after the prediction.
    """
    device = "cuda" if actors.gpus else "cpu"
    make = partial(_PartWriter, plan.state, output, model, guard, max_pixels, device, plan.fingerprint)
    actors = replace(actors, remedy="lower compute.actors or max_pixels, or use larger nodes; finished parts are kept")
    units = dict(enumerate(plan.units))
    made = dict(executor.map_actors(units, make, actors, title="segmenting", unit="parts"))
    return [made[index] for index in units]


@dataclass
class _PartWriter:
    """A writer of parts (Parquet files) of the table `predictions`. The executor creates one in each worker process.

    It loads the ensemble when the first image must be predicted, and keeps it in memory. Several threads may call it.

    Attributes:
        state: the input folder, the model version and the generation (the name of the predictions made with this model version).
            They are written to every row.
        output: folder or bucket prefix of the output.
        model: folder of the saved ensemble (both networks and their options).
        guard: writes the files of images, as long as no other run has taken the lock of the output folder.
        max_pixels: images with more pixels are rejected; None for the limit stored with the ensemble.
        device: torch device to predict on, "cuda" or "cpu".
        fingerprint: digest under which the table's parts (Parquet files) are stored, `Plan.fingerprint`. If a worker dies, its
            parts are not made again.
        threads: number of CPU threads that prediction may use.
    """

    state: OutputState
    output: str
    model: str
    guard: LockGuard
    max_pixels: int | None
    device: str
    fingerprint: str
    threads: int
    _loading: Lock = field(default_factory=Lock, init=False)
    _ensemble: SavedEnsemble | None = field(default=None, init=False)

    def __call__(self, index: int, tasks: Sequence[Task]) -> tables.Part:
        """Predict the images of one part (Parquet file) of the table `predictions`, and write the part.

        Args:
            index: number of the part in the table, from 0.
            tasks: one task for each image of the part. It says whether to predict the image and to draw an overlay.

        Returns:
            The summary of the part that was written.
        """
        return tables.write_part(storage.join(self.output, TABLE), self.fingerprint, index, self.rows(tasks), PREDICTIONS)

    @property
    def ensemble(self) -> SavedEnsemble:
        """Return the saved ensemble (the networks). On first use, load it and limit the CPU threads of torch and OpenCV."""
        import torch

        with self._loading:  # without this lock, and by `cached_property` from Python 3.12 on, each thread would load it
            if self._ensemble is None:
                torch.set_num_threads(self.threads)
                cv2.setNumThreads(1)
                self._ensemble = SavedEnsemble(self.model, self.device, self.max_pixels)
            return self._ensemble

    @cached_property
    def classes(self) -> Sequence[str]:
        """Return the class names, ordered by id. On first use, they are read from the ensemble's folder; no network is loaded."""
        return list(read_options(self.model)["classes"])

    @cached_property
    def background(self) -> bool:
        """Return whether class 0 is the background. On first use, it is read from the ensemble's folder; no network is loaded."""
        return bool(read_options(self.model)["segment"].get("background", True))

    def rows(self, tasks: Sequence[Task]) -> Iterator[dict[str, Any] | tables.Reject]:
        """Make the rows of one part (Parquet file) of the table: predict each image, or copy its row from an earlier run.

        The mask and the overlay of an image are written before its row is yielded.

        Args:
            tasks: one task for each image of the part. It says whether to predict the image and to draw an overlay.

        Yields:
            For each task in order, a dict with the columns of the schema `PREDICTIONS`, or a `Reject` with the reason if the
            image cannot be used. Both a row and a `Reject`, if the image was predicted earlier and can't be read now that its
            overlay is to be drawn.

        Raises:
            UserError: if a mask from which an overlay is to be drawn was edited after the prediction.
        """
        known = self._read_known_rows({task.part for task in tasks if task.part})
        for task in tasks:
            name, has_overlay = task.image.name, task.has_overlay
            try:
                if task.image.refused:
                    raise BadInput(task.image.refused)
                if not task.part:
                    yield self._predict(task)
                    continue
                if task.draw_overlay:
                    image = decode_image(self._read_image(task))
                    self._draw_overlay(task, image, self._read_mask(task, image))
            except BadInput as error:
                yield tables.Reject(name, storage.join(self.state.input, name), "predict", str(error))
                if not task.part:
                    continue
                has_overlay = False  # the prediction is kept
            files = {
                "overlay": task.overlay_path if has_overlay else None,
                "confidence_map": task.map_path if task.has_map else None,
            }
            yield {**known[name, task.part], **files}

    def _read_known_rows(self, parts: set[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """Read the rows that earlier runs wrote.

        Args:
            parts: names of the parts (Parquet files) of the table `predictions` to read.

        Returns:
            A dict from (image_id, name of the part) to the row, a dict by column name.
        """
        table = storage.join(self.output, TABLE)
        found = ((part, tables.iter_rows(table, part=tables.Part(part, []))) for part in sorted(parts))
        return {(row["image_id"], part): row for part, rows in found for row in rows}

    def _predict(self, task: Task) -> dict[str, Any]:
        """Predict an image and write its mask and, if wanted, its overlay and its confidence map.

        Args:
            task: the image and the files to write for it.

        Returns:
            The image's row of the table `predictions`, a dict with the columns of the schema `PREDICTIONS`.

        Raises:
            BadInput: if the image cannot be read or segmented.
        """
        prediction = self.ensemble.predict(self._read_image(task))
        mask = prediction.mask
        self.guard.write(
            storage.join(self.output, task.mask_path), encode_mask(mask, class_palette(self.background), self.state.comment)
        )
        if task.has_map:
            # Higher levels of compression are slow, and save little.
            data = encode_mask(prediction.confidence_map, comment=self.state.comment, level=1)
            self.guard.write(storage.join(self.output, task.map_path), data)
        if task.draw_overlay:
            self._draw_overlay(task, prediction.image, mask)
        counts = np.bincount(mask.ravel(), minlength=len(self.classes))
        present = np.flatnonzero(counts)
        state = self.state
        return {
            "image_id": task.image.name,
            "path": storage.join(state.input, task.image.name),
            "width": mask.shape[1],
            "height": mask.shape[0],
            "classes": [self.classes[int(i)] for i in present],
            "shares": (counts[present] / mask.size).tolist(),
            **prediction.uncertainty.columns(),
            "boxes": prediction.boxes,
            "fingerprint": perceptual_hash(prediction.image),
            "mask": task.mask_path,
            "confidence_map": task.map_path if task.has_map else None,
            "overlay": task.overlay_path if task.has_overlay else None,
            "model": state.model,
            "model_version": state.model_version,
            "stamp": task.image.stamp,
            "generation": state.generation,
        }

    def _draw_overlay(self, task: Task, image: np.ndarray, mask: np.ndarray) -> None:
        """Draw a mask over its image in translucent class colours and write the result to the output as a JPEG file.

        Args:
            task: the image's task, which gives the path of the file.
            image: uint8 (H, W, 3), RGB.
            mask: class ids, uint8 (H, W).
        """
        drawn = fit_in_jpeg(overlay(image, mask, self.classes, self.background))
        data = encode_jpeg(drawn, _OVERLAY_QUALITY, self.state.comment)
        self.guard.write(storage.join(self.output, task.overlay_path), data)

    def _read_mask(self, task: Task, image: np.ndarray) -> np.ndarray:
        """Read the mask of an image that an earlier run has predicted.

        Args:
            task: the image's task, which names the file.
            image: uint8 (H, W, 3), RGB.

        Returns:
            Class ids, uint8 (H, W).

        Raises:
            UserError: if the file can't be the mask that was predicted. Then it is a user's work and must not be overwritten.
        """
        uri = storage.join(self.output, task.mask_path)
        try:
            mask = decode_mask(storage.read_bytes(uri))
            check_masks(mask, image=image)
        except (BadInput, ValueError, FileNotFoundError) as error:
            raise UserError(
                f"{uri} was edited or removed after it was predicted, so no overlay can be drawn from it ({error}): move it to "
                "another folder, and run again"
            ) from None
        return mask

    def _read_image(self, task: Task) -> bytes:
        """Read an image file from the input folder.

        Args:
            task: the image's task, which names the file.

        Returns:
            The content of the file.

        Raises:
            BadInput: if the file was removed or cannot be read.
        """
        try:
            return storage.read_bytes(storage.join(self.state.input, task.image.name))
        except FileNotFoundError:
            raise BadInput(f"{UNREADABLE}it was removed during the run") from None
        except OSError as error:
            raise BadInput(f"{UNREADABLE}{error.strerror or error}") from None
