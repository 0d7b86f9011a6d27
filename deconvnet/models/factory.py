"""Functions that build a network from the settings and load the weights that its training starts from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deconvnet.models import checkpoint
from deconvnet.models.architectures import Architecture
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.init_weights.decoder import interpolate
from deconvnet.models.init_weights.fine_tuning import load_trained_weights
from deconvnet.models.init_weights.vgg16 import load_vgg16
from deconvnet.models.network import Network

if TYPE_CHECKING:
    from deconvnet.settings import ModelSettings


def build_network(architecture: Architecture, settings: "ModelSettings", num_classes: int) -> Network:
    """Build an untrained network as described by the settings.

    Args:
        architecture: the network to build.
        settings: section `model` of the settings. It gives the width, the input size and the format of the input pixels.
        num_classes: number of classes, including background.

    Returns:
        The network with its random initial weights. They are drawn from torch's global random generator.
    """
    return architecture.network_class()(num_classes, **architecture.constructor_arguments(settings))


def initialise(model: Network, settings: "ModelSettings", classes: Sequence[str], init: str | None) -> None:
    """Load the weights that the training of a network starts from. The network is changed in place.

    Args:
        model: an untrained network made by `build_network`.
        settings: section `model` of the settings. It decides on the weights if `init` is None: `vgg16` names a file of ImageNet
            weights, or is None for no such weights; `decoder_init` says how DeconvNet's decoder is initialised.
        classes: class names by class id, background first.
        init: URI of a folder with a trained model, whose weights are copied. It may have other classes: the score layers' weights
            are copied only for classes with the same name. None: the weights are initialised as `settings` says.

    Raises:
        UserError: if the weights can't be read or don't fit the network.
    """
    if init is not None:
        source, meta = checkpoint.load_model(init)
        load_trained_weights(model, source.state_dict(), meta["classes"], classes, meta["convention"])
        return
    if settings.decoder_init == "interpolation" and isinstance(model, DeconvNet):
        interpolate(model)
    if settings.vgg16 is not None:
        load_vgg16(model, settings.vgg16)
