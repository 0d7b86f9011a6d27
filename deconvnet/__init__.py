"""DeconvNet and FCN-8s for semantic segmentation: data, networks, training, inference, evaluation, serving."""

from typing import TYPE_CHECKING, Any

from deconvnet.version import package_version

if TYPE_CHECKING:
    from deconvnet.models.deconvnet import DeconvNet
    from deconvnet.models.fcn8s import FCN8s

__version__ = package_version()
__all__ = ["DeconvNet", "FCN8s", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a network when it is first used: settings and data jobs don't need torch, which takes 2 s and 250 MB."""
    if name in ("DeconvNet", "FCN8s"):
        from deconvnet.models.architectures import ARCHITECTURES

        return ARCHITECTURES[name.lower()].network_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
