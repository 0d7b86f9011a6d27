"""The base class of both networks. It stores the constructor arguments and converts images to the network's input."""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from deconvnet.models.preprocessing import CONVENTIONS, prepare


class Network(nn.Module):
    """The base class of the segmentation networks.

    A network can be rebuilt from its `architecture` and the arguments that `config()` returns.

    Attributes:
        architecture: name of the architecture, "deconvnet" or "fcn8s".
        num_classes: number of classes, including background.
        width: number of channels per layer as a fraction of the published network's.
        convention: format of the input pixels that the weights expect. "caffe": BGR, 0–255, minus the mean. "torchvision": RGB,
            0–1, minus the mean, divided by the standard deviation.
        input_size: side in pixels of the square input that the network is trained on. None if there is no fixed size.
    """

    architecture: str
    input_size: int | None = None

    def __init__(self, num_classes: int, width: float, convention: str) -> None:
        """Check and store the arguments that both networks share.

        Args:
            num_classes: number of classes, including background; at least 1.
            width: number of channels per layer as a fraction of the published network's; above 0.
            convention: format of the input pixels, "caffe" (BGR, 0–255, minus the mean) or "torchvision" (RGB, 0–1,
                normalised).

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
        self._frozen: tuple[str, ...] = ()  # names of submodules that are not trained
        self.num_classes, self.width, self.convention = num_classes, width, convention

    def freeze(self, names: Sequence[str]) -> None:
        """Exclude submodules from training. Their weights and the statistics of their batch norms stay as they are.

        Args:
            names: names of the submodules, such as "conv1".
        """
        self._frozen = tuple(names)
        for name in names:
            self.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode. Frozen submodules are always in evaluation mode.

        Args:
            mode: True for training mode.

        Returns:
            The network itself.
        """
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor by name, as JSON values, so that the network can be built again."""
        return {"num_classes": self.num_classes, "width": self.width, "convention": self.convention}

    def check_input(self, images: Tensor) -> None:
        """Check the dtype and the shape of the input of `forward`. The pixel values are not checked.

        Args:
            images: normalised images, as returned by the method `prepare`. They must be a float tensor of shape (N, 3, H, W).

        Raises:
            ValueError: if the dtype or the shape is wrong.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} was given {images.dtype} {tuple(images.shape)}; expected floats (N, 3, H, W), "
                "which the network's method `prepare` makes of uint8 RGB images (N, 3, H, W)"
            )

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images to the network's input.

        Args:
            images: uint8 RGB images of shape (N, 3, H, W), on the device of the network.

        Returns:
            Tensor of the same shape, in the dtype of the weights. The pixels are normalised as `convention` says.
        """
        return prepare(images, self.convention).to(next(self.parameters()).dtype)
