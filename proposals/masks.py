"""Checks that arrays are valid images or masks, with advice in the error messages, and the value that means "void" in masks.

Images are uint8 arrays (H, W, 3), RGB. Class masks are uint8 arrays (H, W) of class ids. Object masks are uint8 or uint16 arrays
(H, W) of object ids. In both masks, 0 is background. Void pixels are those whose class or object is not known.
"""

from typing import Any

import numpy as np

VOID_ID = 255
"""The void value of class masks and of 8-bit object masks."""
VOID_ID_16BIT = 65535
"""The void value of 16-bit object masks."""


def void_id(mask: np.ndarray) -> int:
    """Return the value that means "void" in a mask: the largest value of its dtype.

    Args:
        mask: uint8 or uint16 array of ids.

    Returns:
        255 for uint8 masks, 65535 for uint16 masks.

    Raises:
        ValueError: if the mask has another dtype, for which there is no such value.
    """
    if mask.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a mask of ids is {mask.dtype}, and must be uint8 (255 is void) or uint16 (65535 is void)")
    return VOID_ID_16BIT if mask.dtype == np.uint16 else VOID_ID


def check_masks(class_mask: np.ndarray, object_mask: np.ndarray | None = None, image: np.ndarray | None = None) -> None:
    """Check the dtypes and shapes of the masks of an image, and of the image itself if it is given.

    Args:
        class_mask: class mask, which must be a uint8 array (H, W).
        object_mask: object mask, which must be a uint8 or uint16 array (H, W) of the same size; None if there is none.
        image: the image, which must be a uint8 array (H, W, 3) of the same size; None to check only the masks.

    Raises:
        ValueError: if an array has another dtype or shape, or the sizes differ.
    """
    masks = {"class_mask": (class_mask, (np.uint8,)), "object_mask": (object_mask, (np.uint8, np.uint16))}
    for name, (mask, dtypes) in masks.items():
        if mask is not None and (mask.ndim != 2 or mask.dtype not in dtypes):
            kinds = " or ".join(np.dtype(each).name for each in dtypes)
            raise ValueError(f"{name} is {mask.dtype} {mask.shape}; expected ids, {kinds} (H, W)")
    if image is not None:
        check_image(image)
    for name, other in {"object_mask": object_mask, "image": image}.items():
        if other is not None and other.shape[:2] != class_mask.shape:
            raise ValueError(f"class_mask is {class_mask.shape}, {name} {other.shape}: height and width must be the same")


def check_image(image: np.ndarray, name: str = "image") -> None:
    """Check that an array is an image.

    Args:
        image: value to check, which must be a uint8 array (H, W, 3). Whether its colours are RGB or BGR can't be checked.
        name: name of the caller's argument, for the error message.

    Raises:
        ValueError: if it is anything else. The message describes the value and says how to convert it.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"{name} is a {type(image).__name__}; expected a numpy array, uint8 (H, W, 3), RGB. "
            f'Convert a Pillow image with np.asarray({name}.convert("RGB"))'
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        values = f", values {image.min():.4g} to {image.max():.4g}" if image.size and image.dtype.kind in "iufb" else ""
        raise ValueError(f"{name} is {image.dtype} {image.shape}{values}; expected uint8 (H, W, 3), RGB. {_advice(image, name)}")


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an 8-bit image that is grey or has an opaque alpha channel to RGB.

    Args:
        image: uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). RGB is returned as it is.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        ValueError: if it is anything else, such as an image of floats (which may mean 0 to 1 or 0 to 255), or if pixels are
            transparent.
    """
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim == 3 and image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        elif image.ndim == 3 and image.shape[2] == 4 and (image[..., 3] == 255).all():
            image = np.ascontiguousarray(image[..., :3])
    check_image(image)
    return image


def _advice(image: np.ndarray, name: str) -> str:
    """Return advice for an error message: a sentence on how to make an image, uint8 (H, W, 3), from an array that is not one.

    Args:
        image: the array, whose shape or dtype is wrong.
        name: name of the caller's argument, which the code in the sentence refers to.
    """
    if image.ndim == 4:
        return f"It is a batch: pass its images one by one, {name}[0] first"
    if image.ndim not in (2, 3) or (image.ndim == 3 and not {1, 3, 4} & {image.shape[0], image.shape[2]}):
        return "It does not have the shape of an image"
    if image.ndim == 3 and image.shape[2] not in (1, 3, 4):
        return f"Its channels come first: pass {name}.transpose(1, 2, 0)"
    if image.dtype != np.uint8:
        return _range_advice(image, name)
    if image.ndim == 3 and image.shape[2] == 4:
        return f"Its alpha channel is not opaque: composite it over a colour, or pass {name}[..., :3] to ignore what alpha hides"
    return f"It is grey: pass np.dstack([{name}] * 3)"


def _range_advice(image: np.ndarray, name: str) -> str:
    """Return advice for an error message: a sentence on how to convert the values of an image to uint8 from 0 to 255.

    Args:
        image: array of any dtype but uint8.
        name: name of the caller's argument, which the code in the sentence refers to.
    """
    kind: Any = image.dtype.kind
    if kind == "b":
        return f"Pass {name}.astype(np.uint8) * 255"
    if kind not in "iuf" or not image.size or not np.isfinite(image).all():
        return "Its values must be finite numbers from 0 to 255"
    low, high = float(image.min()), float(image.max())
    if low < 0:
        return "It has negative values: undo the normalisation, so that they are from 0 to 255"
    if kind == "f" and high <= 1:
        return f"If its white is 1, pass np.rint({name} * 255).astype(np.uint8)"
    if high <= 255:
        return f"If its white is 255, pass np.rint({name}).astype(np.uint8)"
    return f"If its white is 65535, pass np.rint({name} / 257).astype(np.uint8)"
