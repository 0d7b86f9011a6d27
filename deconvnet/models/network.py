"""The base class of both networks: the arguments they are built from and the input they expect."""

from typing import Any

from torch import Tensor, nn

from deconvnet.models.preprocessing import CONVENTIONS, prepare


class Network(nn.Module):
    """A segmentation network that can be rebuilt from its `architecture` and `config()`.

    Attributes:
        architecture: its name in `deconvnet.models.architectures`.
        num_classes: classes with background.
        width: channels relative to the paper's.
        convention: input convention of its weights, see `deconvnet.models.preprocessing`.
        input_size: side of the square input it is trained on, px; None for any.
    """

    architecture: str
    input_size: int | None = None

    def __init__(self, num_classes: int, width: float, convention: str) -> None:
        """Check and keep what both networks have in common.

        Args:
            num_classes: classes with background.
            width: channels relative to the paper's.
            convention: input convention, "caffe" or "torchvision".

        Raises:
            ValueError: for values out of range.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; at least 1 is needed")
        if not width > 0:
            raise ValueError(f"width is {width}; it must be above 0")
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown input convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        self.num_classes, self.width, self.convention = num_classes, width, convention

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON values."""
        return {"num_classes": self.num_classes, "width": self.width, "convention": self.convention}

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images into the network's input.

        Args:
            images: uint8 (N, 3, H, W), RGB.

        Returns:
            (N, 3, H, W) by the network's input convention, in the dtype of its weights.
        """
        return prepare(images, self.convention).to(next(self.parameters()).dtype)
