"""DeconvNet and FCN-8s for semantic segmentation: data sets, networks, training, inference, evaluation and serving."""

from typing import TYPE_CHECKING, Any

from deconvnet.version import package_version

if TYPE_CHECKING:
    from deconvnet.models.deconvnet import DeconvNet
    from deconvnet.models.fcn8s import FCN8s

__version__ = package_version()
__all__ = ["DeconvNet", "FCN8s", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a network class when it is first used.

    Python calls this function for every name that the module does not define. Importing torch takes about 2 s and 250 MB, which
    code for settings and data does not need.

    Args:
        name: name of the attribute. Only "DeconvNet" and "FCN8s" are known.

    Returns:
        The class of the network, a subclass of `torch.nn.Module`.

    Raises:
        AttributeError: if the name is any other.
    """
    if name in ("DeconvNet", "FCN8s"):
        from deconvnet.models.architectures import ARCHITECTURES

        return ARCHITECTURES[name.lower()].network_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
