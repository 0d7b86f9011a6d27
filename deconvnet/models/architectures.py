"""The two architectures by name: what differs between DeconvNet and FCN-8s outside their layers. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deconvnet.models.network import Network
    from deconvnet.settings import ModelSettings


@dataclass(frozen=True)
class Architecture:
    """How a network is built from the settings, and what it is trained on.

    Attributes:
        name: the architecture's name in model folders and in code: "deconvnet" or "fcn8s".
        class_path: module and class of the network, "module:Class"; imported when first used, because it needs torch.
        arguments: the field of `ModelSettings` that gives each argument of the network's constructor, by argument name.
        whole_images: True for a network trained on whole images (the `images` table, of which it uses the splits "train"
            and "dev"); False for one trained on crops (an `examples` table for each split).
        trained_by: the training stages that train this architecture.
    """

    name: str
    class_path: str
    arguments: Mapping[str, str]
    whole_images: bool
    trained_by: tuple[str, ...]

    def network_class(self) -> "type[Network]":
        """Import and return the network's class."""
        module, name = self.class_path.split(":")
        found: type[Network] = getattr(import_module(module), name)
        return found

    def width(self, settings: "ModelSettings") -> float:
        """Read the network's width.

        Args:
            settings: settings of the networks.

        Returns:
            Channels relative to the paper's; FCN-8s' default is DeconvNet's width.
        """
        width = getattr(settings, self.arguments["width"])
        return float(settings.width if width is None else width)

    def input_size(self, settings: "ModelSettings") -> int:
        """Read the side of the square input that the network is trained on.

        Args:
            settings: settings of the networks.

        Returns:
            Side in pixels.
        """
        return int(getattr(settings, self.arguments["input_size"]))

    def constructor_arguments(self, settings: "ModelSettings") -> dict[str, Any]:
        """Collect the arguments of the network's constructor.

        Args:
            settings: settings of the networks.

        Returns:
            Keyword arguments, all but `num_classes`.
        """
        return {
            argument: self.width(settings) if argument == "width" else getattr(settings, field)
            for argument, field in self.arguments.items()
        }

    def settings_used(self, settings: "ModelSettings") -> dict[str, Any]:
        """Collect the settings that the training of this network depends on, to tell whether it must run again.

        Args:
            settings: settings of the networks.

        Returns:
            JSON values by name, without those of the other network.
        """
        used = {**self.constructor_arguments(settings), "vgg16": settings.vgg16}
        return used if self.whole_images else {**used, "decoder_init": settings.decoder_init}

    def needs_pruned_vgg16(self, settings: "ModelSettings") -> bool:
        """Decide whether VGG-16's weights must be pruned to initialise the network.

        Args:
            settings: settings of the networks.

        Returns:
            True if the settings name VGG-16's weights and the network is narrower than they are.
        """
        return settings.vgg16 is not None and self.width(settings) < 1

    def split(self, split: Literal["train", "dev"]) -> str | None:
        """Name the split to read from the table that the network is trained or evaluated on.

        Args:
            split: what the examples are for.

        Returns:
            The same name for an `images` table, which holds all splits; None for an `examples` table, which holds one.
        """
        return split if self.whole_images else None


DECONVNET = Architecture(
    name="deconvnet",
    class_path="deconvnet.models.deconvnet:DeconvNet",
    arguments={"width": "width", "input_size": "input_size", "convention": "convention"},
    whole_images=False,
    trained_by=("stage1", "stage2"),
)
FCN8S = Architecture(
    name="fcn8s",
    class_path="deconvnet.models.fcn8s:FCN8s",
    arguments={
        "width": "fcn_width",
        "batch_norm": "fcn_batch_norm",
        "convention": "convention",
        "input_size": "fcn_input_size",
    },
    whole_images=True,
    trained_by=("fcn8s",),
)

ARCHITECTURES: Mapping[str, Architecture] = {each.name: each for each in (DECONVNET, FCN8S)}
"""Every architecture by its name."""


def architecture_of_stage(stage: str) -> Architecture:
    """Look up the architecture that a training stage trains.

    Args:
        stage: "fcn8s", "stage1" or "stage2".
    """
    return next(each for each in ARCHITECTURES.values() if stage in each.trained_by)
