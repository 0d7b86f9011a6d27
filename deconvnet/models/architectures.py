"""The networks by name."""

from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.models.network import Network

NETWORKS: dict[str, type[Network]] = {net.architecture: net for net in (DeconvNet, FCN8s)}
