"""Object proposals (boxes where objects may be) and the training crops cut by them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proposals.edgebox import edge_boxes

__all__ = ["edge_boxes"]


def __getattr__(name: str) -> Any:
    """Import `edge_boxes` when it is first used, so that `proposals.settings` can be imported without OpenCV."""
    if name in __all__:
        from proposals import edgebox

        return getattr(edgebox, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
