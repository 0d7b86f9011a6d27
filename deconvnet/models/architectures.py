"""A description of each of the two network architectures, DeconvNet and FCN-8s.

Code that only needs to know how the networks differ can import this module without importing torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deconvnet.models.network import Network
    from deconvnet.settings import ModelSettings


@dataclass(frozen=True)
class Architecture:
    """A network architecture: how it is built from the settings and which data it is trained on.

    Attributes:
        name: name of the architecture in model folders and in code, "deconvnet" or "fcn8s".
        class_path: module and class of the network as "module:Class". The module needs torch, so it is imported only on use.
        arguments: the constructor arguments that come from the settings. The keys are argument names of the network's
            constructor, and the values are names of fields of `ModelSettings`.
        vgg16_width_field: name of the field of `ModelSettings` that holds the width of the network's five VGG-16 blocks. If the
            value of that field is None, the value of the field `width` is used.
        whole_images: True if the network is trained on whole images. They are in an `images` table, whose column `split` says
            "train" or "dev". False if the network is trained on crops. Then there is an `examples` table of crops for each
            split.
        trained_by: names of the training stages that train this architecture: ("stage1", "stage2") or ("fcn8s",).
        needs_two_examples: True if a process that trains alone must compute at least two examples at once. DeconvNet's fc6 has a
            single value per example and channel, and batch norm after it needs two.
    """

    name: str
    class_path: str
    arguments: Mapping[str, str]
    vgg16_width_field: str
    whole_images: bool
    trained_by: tuple[str, ...]
    needs_two_examples: bool

    def network_class(self) -> "type[Network]":
        """Import the module of the network and return the network's class (the class, not an instance)."""
        module, name = self.class_path.split(":")
        found: type[Network] = getattr(import_module(module), name)
        return found

    def width(self, settings: "ModelSettings") -> float:
        """Return the width of the network's first five blocks, which are VGG-16's.

        The width is a number of channels per layer as a fraction of VGG-16's.

        Args:
            settings: section `model` of the settings, which covers both networks.

        Returns:
            FCN-8s's width or the width of DeconvNet's encoder. If the settings don't have it, the width of DeconvNet.
        """
        own = getattr(settings, self.vgg16_width_field)
        return float(settings.width if own is None else own)

    def input_size(self, settings: "ModelSettings") -> int:
        """Return the side, in pixels, of the square input that the network is trained on.

        Args:
            settings: section `model` of the settings, which covers both networks.
        """
        return int(getattr(settings, self.arguments["input_size"]))

    def constructor_arguments(self, settings: "ModelSettings") -> dict[str, Any]:
        """Return the arguments for the network's constructor.

        Args:
            settings: section `model` of the settings, which covers both networks.

        Returns:
            All keyword arguments of the constructor except `num_classes`, which depends on the data.
        """
        return {
            argument: self.width(settings) if field == self.vgg16_width_field else getattr(settings, field)
            for argument, field in self.arguments.items()
        }

    def settings_used(self, settings: "ModelSettings") -> dict[str, Any]:
        """Return the settings that influence the training of this network.

        The network must be trained again if one of them changes. Settings of the other network are left out.

        Args:
            settings: section `model` of the settings, which covers both networks.

        Returns:
            The constructor's arguments by name, the file of VGG-16's weights as "vgg16" and, for DeconvNet, "decoder_init". All
            values can be written as JSON.
        """
        used = {**self.constructor_arguments(settings), "vgg16": settings.vgg16}
        return used if self.whole_images else {**used, "decoder_init": settings.decoder_init}

    def needs_fitted_vgg16(self, settings: "ModelSettings") -> bool:
        """Return whether VGG-16's weights must be fitted to the network before it starts from them.

        A narrower network needs fewer channels. A network with batch norms needs values for them with which the layers compute
        what VGG-16's layers do.

        Args:
            settings: section `model` of the settings, which covers both networks.

        Returns:
            True if the settings name a file of VGG-16 weights, and the network is narrower than VGG-16 or has batch norms.
        """
        optional = self.arguments.get("batch_norm")
        has_batch_norm = optional is None or getattr(settings, optional)
        return settings.vgg16 is not None and (has_batch_norm or self.width(settings) < 1)

    def split_filter(self, split: Literal["train", "dev"]) -> str | None:
        """Return the value of the column `split` that selects a split in the table that the network is trained or evaluated on.

        Args:
            split: "train" for the training data, "dev" for the data that the network is evaluated on during training.

        Returns:
            `split` itself for a network trained on whole images, because an `images` table holds all splits. None for a network
            trained on crops, because each `examples` table holds a single split and all its rows are used.
        """
        return split if self.whole_images else None


DECONVNET = Architecture(
    name="deconvnet",
    class_path="deconvnet.models.deconvnet:DeconvNet",
    arguments={name: name for name in ("width", "input_size", "convention", "encoder_width", "decoder_width", "fc_channels")},
    vgg16_width_field="encoder_width",
    whole_images=False,
    trained_by=("stage1", "stage2"),
    needs_two_examples=True,
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
    vgg16_width_field="fcn_width",
    whole_images=True,
    trained_by=("fcn8s",),
    needs_two_examples=False,
)

ARCHITECTURES: Mapping[str, Architecture] = {each.name: each for each in (DECONVNET, FCN8S)}
"""All architectures by name."""


def architecture_of_stage(stage: str) -> Architecture:
    """Return the architecture that a training stage trains.

    Args:
        stage: name of the stage: "fcn8s" trains FCN-8s; "stage1" and "stage2" train DeconvNet.

    Raises:
        ValueError: if there is no such stage.
    """
    for architecture in ARCHITECTURES.values():
        if stage in architecture.trained_by:
            return architecture
    known = ", ".join(name for each in ARCHITECTURES.values() for name in each.trained_by)
    raise ValueError(f"there is no training stage {stage!r}; the stages are {known}")
