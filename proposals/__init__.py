"""Object proposals (boxes that may contain an object) and the training crops that are cut out with their help."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proposals.edgebox import edge_boxes

__all__ = ["edge_boxes"]


def __getattr__(name: str) -> Any:
    """Import `edge_boxes` when it is first used.

    Python calls this function for names that the module does not define yet. Because of it, `proposals.settings` can be imported
    without OpenCV.

    Args:
        name: name of the attribute that is looked up in this package.

    Returns:
        The function `proposals.edgebox.edge_boxes`.

    Raises:
        AttributeError: if `name` is anything but "edge_boxes".
    """
    if name in __all__:
        from proposals import edgebox

        return getattr(edgebox, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
