"""What an evaluation measures of some images, and the files in which it is kept until the evaluation has ended.

Workers write a file for each batch of images. So an evaluation that was stopped or killed goes on where it ended.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from deconvnet.evaluation.image_measures import MASKS, SIDE_BY_SIDE
from infra import storage

BATCHES = "batches"
"""Name of the folder, in the report's folder, with the measurements of batches. It is deleted when the evaluation has ended."""
_SUM = "sum."
_THREADS = 16  # a bucket takes tens of milliseconds for each file


@dataclass(frozen=True)
class Measurements:
    """The measurements of N images, by R results and C classes.

    A result is one of the five ways of predicting (`deconvnet.inference.predictor.RESULTS`). The attributes `confusions`,
    `boundaries`, `uncertainty` and `shares` are of the result "edeconvnet_crf", the ensemble with the CRF.

    Attributes:
        image_ids: ids of the images, (N,).
        in_int8: whether each image was predicted in 8-bit integers, bool (N,).
        mean_iou: mean IoU by image and result, float64 (N, R); nan if the whole annotation is void.
        confusions: confusion matrix of each image, int32 (N, C, C).
        boundaries: boundary F-measure and Boundary IoU of each image, means over the classes, float64 (N, 2); nan if undefined.
        uncertainty: the values of `uncertainty.Measures` of each image, float64 (N, 5), in the order of its fields; nan for None.
        shares: share of each class in the predicted mask of each image, float64 (N, C).
        sums: arrays that are sums over the images, by name: those of `Breakdowns.arrays`, `contours` and `bands` of
            `BoundaryCounts`, and `calibration`, the array of `calibration_counts`.
    """

    image_ids: NDArray[np.str_]
    in_int8: NDArray[np.bool_]
    mean_iou: NDArray[np.float64]
    confusions: NDArray[np.int32]
    boundaries: NDArray[np.float64]
    uncertainty: NDArray[np.float64]
    shares: NDArray[np.float64]
    sums: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, images: Sequence[Sequence[Any]], sums: Mapping[str, NDArray[Any]]) -> Self:
        """Put the measurements of single images together.

        Args:
            images: for each image its values of the attributes from `image_ids` to `shares`.
            sums: the sums over the images.

        Returns:
            The measurements of these images.
        """
        kinds = (np.str_, np.bool_, np.float64, np.int32, np.float64, np.float64, np.float64)
        values = zip(*images, strict=True) if images else [()] * len(kinds)
        columns: dict[str, Any] = {name: np.array(each, kind) for name, each, kind in zip(_COLUMNS, values, kinds, strict=True)}
        return cls(**columns, sums=sums)

    @classmethod
    def merged(cls, batches: Iterable["Measurements"]) -> Self | None:
        """Put the measurements of batches together, in the order of the images' ids. Return None if there is no image."""
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
        sums: dict[str, NDArray[Any]] = {}
        for batch in batches:
            if len(batch.image_ids):
                for name, values in found.items():
                    values.append(getattr(batch, name))
                sums = {name: sums[name] + array if sums else array for name, array in batch.sums.items()}
        if not sums:
            return None
        order = np.argsort(np.concatenate(found["image_ids"]), kind="stable")
        columns: dict[str, Any] = {name: np.concatenate(found.pop(name))[order] for name in _COLUMNS}
        return cls(**columns, sums=sums)

    def write(self, uri: str) -> None:
        """Write the measurements to a file (npz), whole or not at all."""
        arrays = {name: getattr(self, name) for name in _COLUMNS} | {_SUM + name: array for name, array in self.sums.items()}
        content = io.BytesIO()
        np.savez(content, **arrays)
        storage.write_bytes(uri, content.getvalue())

    @classmethod
    def read(cls, uri: str) -> Self | None:
        """Read the measurements in a file that `write` has written. Return None if it is damaged, or of another version."""
        try:
            with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as file:
                sums = {name.removeprefix(_SUM): file[name] for name in file.files if name.startswith(_SUM)}
                return cls(**{name: file[name] for name in _COLUMNS}, sums=sums)
        except (ValueError, KeyError, EOFError, BadZipFile):
            return None


_COLUMNS = tuple(field.name for field in fields(Measurements) if field.name != "sums")


def read_kept(report_uri: str, files: Mapping[int, str]) -> dict[int, Measurements]:
    """Read the measurements of batches that an evaluation has left in a report's folder.

    Batches of which pictures or masks are missing are left out. Files of other evaluations are deleted, because these have
    written pictures and masks under the same names.

    Args:
        report_uri: the report's folder.
        files: for each batch, by its index, the path of its file below the folder `BATCHES`.

    Returns:
        The measurements by the index of the batch.
    """
    folder = storage.join(report_uri, BATCHES)
    there = set(storage.list_files(folder))
    storage.remove_files(folder, sorted(there - set(files.values())))
    left = [index for index, name in files.items() if name in there]
    if not left:
        return {}
    names = {kind: set(storage.list_files(storage.join(report_uri, kind))) for kind in (SIDE_BY_SIDE, MASKS)}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = zip(left, pool.map(lambda index: Measurements.read(storage.join(folder, files[index])), left), strict=True)
        return {
            index: batch
            for index, batch in found
            if batch is not None
            and all(f"{i}.jpg" in names[SIDE_BY_SIDE] and f"{i}.png" in names[MASKS] for i in batch.image_ids.tolist())
        }
