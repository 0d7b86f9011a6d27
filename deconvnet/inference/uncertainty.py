"""How sure a prediction is: confidence, entropy, the disagreement of the two networks, and doubt at the boundaries.

DeconvNet and FCN-8s see an image in different ways, so where they predict different classes, one of them is wrong. Their scores
are computed for the ensemble anyway.

The CRF makes most probabilities nearly 0 or 1, whether the class is right or not. So all measures but `confidence` are of the
ensemble's probabilities before the CRF.

All measures are of pixels (module `pixels`), and are averaged over an image and over the pixels of each predicted class.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

DOUBT = 0.5
"""A pixel is in doubt if its class has a lower probability than this before the CRF: the other classes together have more."""


@dataclass(frozen=True)
class Measures:
    """How sure a prediction is of some pixels: of those of an image, or of those that were given one class.

    Attributes:
        confidence: mean probability of the predicted class after the CRF, 0 to 1.
        confidence_before_crf: mean probability of the same class before the CRF, 0 to 1.
        entropy: mean entropy of the class probabilities before the CRF, as a share of the largest possible entropy, 0 to 1.
        disagreement: share of the pixels for which DeconvNet and FCN-8s predict different classes, 0 to 1.
        boundary_doubt: share of the boundary pixels that are in doubt, 0 to 1. A boundary pixel has a neighbour (above, below,
            left or right) of another class. A pixel in doubt has a probability below `DOUBT`. None without boundary pixels.
    """

    confidence: float
    confidence_before_crf: float
    entropy: float
    disagreement: float
    boundary_doubt: float | None


@dataclass(frozen=True)
class Uncertainty:
    """How sure the prediction of an image is.

    Attributes:
        image: the measures of all pixels.
        classes: the measures of the pixels of each predicted class, by class id, in ascending order. Other classes are absent.
    """

    image: Measures
    classes: Mapping[int, Measures]

    def columns(self) -> dict[str, object]:
        """Return the measures as columns of a table: those of the image, and lists `class_…` in the order of the class ids."""
        by_class = [asdict(measures) for measures in self.classes.values()]
        whole = asdict(self.image)
        return whole | {f"class_{name}": [each[name] for each in by_class] for name in whole}


@dataclass(frozen=True)
class Segmentation:
    """A predicted mask, and how sure it is.

    Attributes:
        mask: class ids, uint8 (H, W).
        confidence_map: probability of each pixel's class before the CRF, uint8 (H, W); 255 is 1.
        uncertainty: measures of the image and of each predicted class. If the image was scaled down, they are of the smaller one.
        boxes: number of boxes, windows included, that DeconvNet segmented.
    """

    mask: np.ndarray
    confidence_map: np.ndarray
    uncertainty: Uncertainty
    boxes: int
