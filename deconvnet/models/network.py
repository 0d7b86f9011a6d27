"""What both networks have in common: how they are built again and what input they take."""

from typing import Any

from torch import Tensor, nn

from deconvnet.models.preprocessing import CONVENTIONS, prepare


class Network(nn.Module):
    """A segmentation network that knows how to be built again (`architecture`, `config()`) and what input it takes."""

    architecture: str
    input_size: int | None = None

    def __init__(self, num_classes: int, width: float, convention: str) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; at least 1 is needed")
        if not width > 0:
            raise ValueError(f"width is {width}; it must be above 0")
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown input convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        self.num_classes, self.width, self.convention = num_classes, width, convention

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {"num_classes": self.num_classes, "width": self.width, "convention": self.convention}

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) RGB photographs as this network takes them: in its weights' type, its convention's colours and mean."""
        return prepare(images, self.convention).to(next(self.parameters()).dtype)
