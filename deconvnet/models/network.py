"""The base class of both networks. It stores the constructor arguments and converts images to the network's input."""

from typing import Any

from torch import Tensor, nn

from deconvnet.models.preprocessing import CONVENTIONS, prepare


class Network(nn.Module):
    """The base class of the segmentation networks.

    A network can be rebuilt from its `architecture` and the arguments that `config()` returns.

    Attributes:
        architecture: name of the architecture, a key of `deconvnet.models.architectures.ARCHITECTURES`.
        num_classes: number of classes, including background.
        width: number of channels per layer as a fraction of the paper's.
        convention: format of the input that the weights expect, "caffe" or "torchvision". See `deconvnet.models.preprocessing`.
        input_size: side in pixels of the square input that the network is trained on. None if there is no fixed size.
    """

    architecture: str
    input_size: int | None = None

    def __init__(self, num_classes: int, width: float, convention: str) -> None:
        """Check and store the arguments that both networks share.

        Args:
            num_classes: number of classes, including background; at least 1.
            width: number of channels per layer as a fraction of the paper's; above 0.
            convention: input convention, "caffe" or "torchvision".

        Raises:
            ValueError: if an argument is out of range.
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
        """Return the constructor's arguments as JSON values."""
        return {"num_classes": self.num_classes, "width": self.width, "convention": self.convention}

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images to the network's input.

        Args:
            images: uint8 RGB images of shape (N, 3, H, W).

        Returns:
            Tensor of the same shape, normalised by the network's input convention, in the dtype of its weights.
        """
        return prepare(images, self.convention).to(next(self.parameters()).dtype)
