"""Networks built from the settings, and the weights that their training starts from."""

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
    """Build the untrained network that the settings describe.

    Args:
        architecture: which network.
        settings: widths, input sizes and input convention.
        num_classes: classes with background.

    Returns:
        The network with the initial weights of its constructor, drawn from torch's global random generator.
    """
    return architecture.network_class()(num_classes, **architecture.constructor_arguments(settings))


def initialise(model: Network, settings: "ModelSettings", classes: Sequence[str], init: str | None) -> None:
    """Fill a network, in place, with the weights that its training starts from.

    Args:
        model: an untrained network of `build_network`.
        settings: without `init`, `vgg16` names ImageNet weights (None: no such weights) and `decoder_init` how DeconvNet's
            decoder starts.
        classes: class names by id, background first.
        init: URI of a model folder whose weights are taken over instead, class scores by class name; None for none.

    Raises:
        UserError: if the named weights can't be read or don't fit the network.
    """
    if init is not None:
        source, meta = checkpoint.load_model(init)
        load_trained_weights(model, source.state_dict(), meta["classes"], classes, meta["convention"])
        return
    if settings.decoder_init == "interpolation" and isinstance(model, DeconvNet):
        interpolate(model)
    if settings.vgg16 is not None:
        load_vgg16(model, settings.vgg16)
