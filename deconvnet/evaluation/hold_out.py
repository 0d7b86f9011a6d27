"""The images on which a new model and the champion (the model in use) are compared: val images that neither model was trained on.

The val images change from one retraining to the next. The champion may have been trained on an image that is a val image only
now, and the new model on an image that is no longer a val image. So the models are compared on images that are val images now,
and were val images with the same content when the champion was registered. A registered model has a list of its val images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.evaluation.metrics import ConfusionMatrix, none_if_nan


@dataclass(frozen=True)
class HoldOut:
    """The val images on which two models are compared.

    Attributes:
        images: ids of the images, in order.
        new: number of present val images that were not val images, or had other content, when the champion was registered.
        gone: number of the champion's val images that have changed since, or are no longer val images.
    """

    images: list[str]
    new: int
    gone: int

    @property
    def too_few(self) -> bool:
        """Return whether fewer than half of the champion's val images are left, so that the comparison says little."""
        return not self.images or len(self.images) < self.gone

    def select(self, confusions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the confusion matrices of these images, out of `confusions`: those of all val images of a model by image_id."""
        return {image_id: confusions[image_id] for image_id in self.images if image_id in confusions}

    def __str__(self) -> str:
        """Describe the images, and those that are left out, in a phrase."""
        texts = [f"val images of both models: {len(self.images):,}"]
        texts += [f"left out, because added or changed since the champion's registration: {self.new:,}"] if self.new else []
        texts += [f"changed or removed since the champion: {self.gone:,}"] if self.gone else []
        return "; ".join(texts)


def find_hold_out(present: Mapping[str, str], champion: Mapping[str, str] | None) -> HoldOut:
    """Find the val images on which the champion and a new model can be compared.

    Args:
        present: digests of the present val images and their masks, by image_id.
        champion: digests of the val images when the champion was registered, by image_id. None if an earlier version of this
            program registered the champion, without such a list: then all present val images are used.
    """
    common = sorted(image_id for image_id, content in present.items() if champion is None or champion.get(image_id) == content)
    return HoldOut(common, len(present) - len(common), len(champion) - len(common) if champion is not None else 0)


def results_of(confusions: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """Compute a model's results on some images.

    Args:
        confusions: confusion matrices of the images by image_id, integers (C, C), at least one. A row is a true class, a column a
            predicted class.
        classes: class names, ordered by id.

    Returns:
        A dict like the content of results.json: the number of `images`, the `classes`, and `rows` with a single row, that of
        `DECISIVE_RESULT`, which has `mean_iou` and `iou`.
    """
    total = ConfusionMatrix(len(classes), np.sum(list(confusions.values()), axis=0, dtype=np.int64))
    iou = {name: none_if_nan(value) for name, value in zip(classes, total.iou.tolist(), strict=True)}
    row = {"mean_iou": none_if_nan(total.mean_iou), "iou": iou}
    return {"images": len(confusions), "classes": list(classes), "rows": {DECISIVE_RESULT: row}}
