"""What an evaluation measures of some images, and the files in which it is kept until the evaluation has ended.

Workers write a file for each batch of images. So an evaluation that was stopped or killed goes on where it ended.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infra import storage

KEPT = "batches"
"""Name of the folder, in the report's folder, with the measurements of batches. It is deleted when the evaluation has ended."""
_SUM = "sum."


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
        """
        kinds = (np.str_, np.bool_, np.float64, np.int32, np.float64, np.float64, np.float64)
        values = zip(*images, strict=True) if images else [()] * len(kinds)
        columns: dict[str, Any] = {name: np.array(each, kind) for name, each, kind in zip(_COLUMNS, values, kinds, strict=True)}
        return cls(**columns, sums=sums)

    @classmethod
    def merged(cls, batches: Iterable["Measurements"]) -> Self | None:
        """Put the measurements of batches together, in the order of the images' ids. Return None if there is no image."""
        found = [batch for batch in batches if len(batch.image_ids)]
        if not found:
            return None
        columns = {name: np.concatenate([getattr(batch, name) for batch in found]) for name in _COLUMNS}
        order = np.argsort(columns["image_ids"], kind="stable")
        sums = {name: np.sum([batch.sums[name] for batch in found], axis=0) for name in found[0].sums}
        return cls(**{name: column[order] for name, column in columns.items()}, sums=sums)

    def write(self, uri: str) -> None:
        """Write the measurements to a file (npz), whole or not at all."""
        arrays = {name: getattr(self, name) for name in _COLUMNS} | {_SUM + name: array for name, array in self.sums.items()}
        content = io.BytesIO()
        np.savez(content, **arrays)
        storage.write_bytes(uri, content.getvalue())

    @classmethod
    def read(cls, uri: str) -> Self:
        """Read the measurements in a file that `write` has written."""
        with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as file:
            sums = {name.removeprefix(_SUM): file[name] for name in file.files if name.startswith(_SUM)}
            return cls(**{name: file[name] for name in _COLUMNS}, sums=sums)


_COLUMNS = tuple(field.name for field in fields(Measurements) if field.name != "sums")
