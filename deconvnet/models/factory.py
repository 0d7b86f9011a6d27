"""Networks from settings, and the weights that their training starts from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deconvnet.models import checkpoint
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.models.init_weights import decoder, vgg16
from deconvnet.models.network import Network

if TYPE_CHECKING:
    from deconvnet.settings import ModelSettings


def width_of(architecture: str, settings: "ModelSettings") -> float:
    """Channels of the network ("deconvnet" or "fcn8s") relative to the paper's."""
    return (settings.fcn_width or settings.width) if architecture == "fcn8s" else settings.width


def build_network(architecture: str, settings: "ModelSettings", num_classes: int) -> Network:
    """The untrained network ("deconvnet" or "fcn8s") that the settings describe."""
    width = width_of(architecture, settings)
    if architecture == "deconvnet":
        return DeconvNet(num_classes, width, settings.input_size, settings.convention)
    return FCN8s(num_classes, width, settings.fcn_batch_norm, settings.convention, settings.fcn_input_size)


def initialise(model: Network, settings: "ModelSettings", classes: Sequence[str], init: str | None) -> None:
    """Fill `model` with what its training starts from: the model folder `init`, else ImageNet's VGG-16, else as it was built.

    Without `init` the decoder of a DeconvNet starts as `settings.decoder_init` says.
    """
    if init is not None:
        source, meta = checkpoint.load_model(init)
        vgg16.initialise_from(model, source.state_dict(), meta["classes"], classes, meta["convention"])
        return
    if settings.decoder_init == "interpolation" and isinstance(model, DeconvNet):
        decoder.interpolate(model)
    if settings.vgg16 is not None:
        vgg16.load_vgg16(model, settings.vgg16)
