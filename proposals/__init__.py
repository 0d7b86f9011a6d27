"""Boxes and crops: where objects may be in a photograph, and the training examples cut from them."""

from proposals.edgebox import edge_boxes

__all__ = ["edge_boxes"]
