"""DeconvNet and FCN-8s: data, networks, training, segmentation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deconvnet.models.deconvnet import DeconvNet
    from deconvnet.models.fcn8s import FCN8s

__all__ = ["DeconvNet", "FCN8s"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the settings and the data jobs need none of torch's 2 seconds and 250 MB.
    if name in __all__:
        from deconvnet.models import architectures

        return getattr(architectures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
