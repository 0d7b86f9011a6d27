"""Compute the image channels and the features from which a structured forest detects edges (Dollár, Zitnick, PAMI 2015).

There are 13 channels, at half the image's resolution: three for the colour (CIE Luv), and at each of two scales five for the
gradient: its magnitude, and the magnitude in each of four orientations. Magnitudes are divided by their local mean. The
definitions are those of OpenCV's edge detector, with the same rounding, so that its forests can be used here and ours there, and
find the same edges.

Each channel is smoothed twice: slightly for regular features, more strongly for self-similarity features. A self-similarity
feature is the difference of a channel at two positions in the patch. A regular feature is the value of a channel at one position;
it is stored as a difference, too, with a second value from a map of zeros, so that both kinds are evaluated by the same code.
"""

from functools import cache

import cv2
import numpy as np
from numba import njit

from proposals.masks import check_image

PATCH = 32  # px, side of the patch that a tree sees
INNER = 16  # px, side of the boundary map that a leaf holds, for the centre of the patch
SHRINK = 2  # factor by which feature channels are smaller than the image
ORIENTATIONS = 4  # gradient orientations, a channel each
CHANNELS = 2 * (ORIENTATIONS + 1) + 3  # gradient magnitude and orientations at two scales, and the colours L, u, v
GRID = 5  # cells per side of the grid for self-similarity features
NORMALIZATION_RADIUS = 4  # px, radius of the triangle filter whose result gradient magnitudes are divided by
REGULAR_SMOOTHING = 2  # px, radii of the triangle filters on the channels
SIMILARITY_SMOOTHING = 8
CELLS = PATCH // SHRINK  # side of a patch in the feature channels
MAPS = 2 * CHANNELS + 1
"""Number of maps that features are read from: the channels for regular features, those for self-similarity, and one of zeros."""
_REGULAR_FEATURES = CELLS * CELLS * CHANNELS
FEATURES = _REGULAR_FEATURES + GRID**2 * (GRID**2 - 1) // 2 * CHANNELS
"""Number of features of a patch."""

_PAD = (PATCH - INNER) // 2  # px by which a patch reaches beyond its central part on each side

_F = np.float32  # in numba, a literal number would make these sums float64
_LUV_SCALE = _F(1) / _F(270)  # L is at most 100, and u and v range over about 270
_MIN_U, _MIN_V = _F(-88) * _LUV_SCALE, _F(-134) * _LUV_SCALE
_WHITE_U, _WHITE_V = _F(13) * _F(0.197833), _F(13) * _F(0.468331)
_XR, _XG, _XB = _F(0.430574), _F(0.341550), _F(0.178325)
_YR, _YG, _YB = _F(0.222015), _F(0.706655), _F(0.071330)
_ZR, _ZG, _ZB = _F(0.020183), _F(0.129553), _F(0.939180)
_UX, _VY, _SUM_Y, _SUM_Z, _TINY = _F(52), _F(117), _F(15), _F(3), _F(1e-35)
_MAX_BYTE, _ONE, _ZERO, _HALF, _QUARTER = _F(255), _F(1), _F(0), _F(0.5), _F(0.25)
_LIGHTNESS_STEPS = _F(1024)  # lightness is read from a table
_FLAT = _F(1e-5)  # a smaller gradient has no orientation
_NORMALIZATION = _F(0.01)  # added to the local mean, so that noise in flat regions stays faint
_EPSILON = _F(2.220446e-16)
_DEGREES = _F(57.29578)  # in a radian
_ATAN1, _ATAN3 = _F(0.9997878412794807) * _DEGREES, _F(-0.3258083974640975) * _DEGREES
_ATAN5, _ATAN7 = _F(0.1555786518463281) * _DEGREES, _F(-0.04432655554792128) * _DEGREES


def feature_channels(image: np.ndarray) -> np.ndarray:
    """Compute the maps from which the features of patches are read (see `feature_table`).

    The image is first extended by 8 px on each side by reflection (and by one more pixel if its height or width is odd). The maps
    have half its resolution.

    Args:
        image: uint8 array (H, W, 3), RGB.

    Returns:
        float32 array (MAPS, h, w): 13 slightly smoothed channels for regular features, the same 13 channels smoothed more
        strongly for self-similarity features, and a map of zeros.

    Raises:
        ValueError: if the image has another dtype or shape.
    """
    check_image(image)
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, _PAD, _PAD + height % 2, _PAD, _PAD + width % 2, cv2.BORDER_REFLECT)
    raw = _raw_channels(padded)
    maps = np.empty((MAPS, *raw.shape[1:]), np.float32)
    regular, similarity = (_triangle(radius // SHRINK) for radius in (REGULAR_SMOOTHING, SIMILARITY_SMOOTHING))
    # OpenCV's filters vectorise by 8 values and round differently in the remainder of a row. Its own detector filters interleaved
    # channels, whose remainder is less than one column. Here rows are padded so that the remainder lies outside the map.
    margin, width = len(similarity) // 2, raw.shape[2]
    right = margin + -(width + 2 * margin) % 8
    for channel in range(CHANNELS):
        cv2.sepFilter2D(raw[channel], -1, regular, regular, dst=maps[channel])
        wide = cv2.copyMakeBorder(raw[channel], 0, 0, margin, right, cv2.BORDER_REFLECT_101)
        maps[CHANNELS + channel] = cv2.sepFilter2D(wide, -1, similarity, similarity)[:, margin : margin + width]
    maps[2 * CHANNELS] = 0
    return maps


@cache
def feature_table() -> np.ndarray:
    """List the two values that each feature is the difference of, in OpenCV's order of features.

    Returns:
        int32 array (FEATURES, 6), read-only: map, row and column of the first value, and map, row and column of the second
        value. Rows and columns are counted from the patch's top left corner, in pixels of the maps. Regular features come
        first.
    """
    half = round(CELLS / (2 * GRID))
    grid = [int((i + 1) * (CELLS + 2 * half - 1) / (GRID + 1) - half + 0.5) for i in range(GRID)]
    ids = np.arange(_REGULAR_FEATURES)
    within, zero = ids % CELLS**2, np.zeros(len(ids), np.int64)
    regular = np.stack([ids // CELLS**2, within % CELLS, within // CELLS, zero + 2 * CHANNELS, zero, zero], axis=1)
    cells = [(grid[i % GRID], grid[i // GRID]) for i in range(GRID**2)]
    similarity = [
        (CHANNELS + c, *cells[i], CHANNELS + c, *cells[j])
        for c in range(CHANNELS)
        for i in range(GRID**2)
        for j in range(i + 1, GRID**2)
    ]
    table = np.concatenate([regular, np.array(similarity)]).astype(np.int32)
    table.flags.writeable = False
    return table


def _triangle(radius: int) -> np.ndarray:
    """Return the weights of a triangle filter, a float32 array (2 * radius + 1,). `radius` is in pixels of the filtered map."""
    ramp = np.arange(1, radius + 2, dtype=np.float32)
    return np.concatenate([ramp, ramp[-2::-1]]) / np.float32((radius + 1) ** 2)


def _raw_channels(image: np.ndarray) -> np.ndarray:
    """Compute the channels before they are smoothed.

    Args:
        image: uint8 array (H, W, 3), RGB; H and W are even.

    Returns:
        float32 array (CHANNELS, H / 2, W / 2): L, u and v; magnitude and orientations of the gradient at full size, averaged over
        2x2 px; magnitude and orientations of the gradient at half size.
    """
    height, width = image.shape[:2]
    small = height // SHRINK, width // SHRINK
    channels = np.empty((CHANNELS, *small), np.float32)
    colours = np.empty((3, height, width), np.float32)
    _luv(image, _LIGHTNESS, colours)
    _halve(colours, channels[:3])
    kernel = _triangle(NORMALIZATION_RADIUS)
    magnitude, orientation = _gradients(colours)
    _average_orientations(magnitude, cv2.sepFilter2D(magnitude, -1, kernel, kernel), orientation, channels[3:8])
    magnitude, orientation = _gradients(channels[:3])
    _split_orientations(magnitude, cv2.sepFilter2D(magnitude, -1, kernel, kernel), orientation, channels[8:13])
    return channels


def _lightness_table() -> np.ndarray:
    """Tabulate lightness L by luminance Y.

    Returns:
        float32 array; element i is L / 270 for Y = i / 1024. Luminances above 1, which arise from rounding, are treated as 1.
    """
    luminance = np.arange(1024, dtype=np.float32) / _LIGHTNESS_STEPS
    slope = _F(29) ** 3 / _F(27)
    cube_root = np.power(luminance.astype(np.float64), float(_F(1) / _F(3))).astype(np.float32)
    lightness = np.where(luminance > _F(8) / slope, _F(116) * cube_root - _F(16), luminance * slope) * _LUV_SCALE
    lightness[927] = np.nextafter(lightness[927], _ZERO)  # where the C library's `powf`, which OpenCV uses, rounds the other way
    return np.append(lightness, np.repeat(lightness[-1], 8)).astype(np.float32)


_LIGHTNESS = _lightness_table()


@njit(cache=True, nogil=True, error_model="numpy")
def _luv(image: np.ndarray, lightness: np.ndarray, out: np.ndarray) -> None:
    """Convert the image, uint8 (H, W, 3) RGB, to CIE Luv, float32 (3, H, W), each colour scaled to about 0 to 1."""
    for i in range(image.shape[0]):
        row, out_l, out_u, out_v = image[i], out[0, i], out[1, i], out[2, i]
        for j in range(image.shape[1]):
            r, g, b = _F(row[j, 0]) / _MAX_BYTE, _F(row[j, 1]) / _MAX_BYTE, _F(row[j, 2]) / _MAX_BYTE
            x = _XR * r + _XG * g + _XB * b
            y = _YR * r + _YG * g + _YB * b
            z = _ZR * r + _ZG * g + _ZB * b
            inverse = _ONE / (x + _SUM_Y * y + _SUM_Z * z + _TINY)
            light = lightness[np.uint32(_LIGHTNESS_STEPS * y)]
            out_l[j] = light
            out_u[j] = light * (_UX * x * inverse - _WHITE_U) - _MIN_U
            out_v[j] = light * (_VY * y * inverse - _WHITE_V) - _MIN_V


@njit(cache=True, nogil=True)
def _halve(colours: np.ndarray, out: np.ndarray) -> None:
    """Average the colours, float32 (3, 2h, 2w), over 2x2 px, and write them to `out` (3, h, w). OpenCV adds in the same order."""
    for colour in range(3):
        for i in range(out.shape[1]):
            top, bottom, row = colours[colour, 2 * i], colours[colour, 2 * i + 1], out[colour, i]
            for j in range(out.shape[2]):
                row[j] = (top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1]) * _QUARTER


@njit(cache=True, nogil=True, error_model="numpy")
def _gradients(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the gradient at each pixel, of the colour in which it is the largest.

    Args:
        colours: float32 array (3, h, w).

    Returns:
        magnitude: float32 array (h, w).
        orientation: uint8 array (h, w), from 0 to 3: the multiple of 45° that is nearest to the gradient's direction.
    """
    _, height, width = colours.shape
    magnitude, orientation = np.empty((height, width), np.float32), np.empty((height, width), np.uint8)
    for i in range(height):
        above, below = max(i - 1, 0), min(i + 1, height - 1)
        l0, l1, l2 = colours[0, i], colours[1, i], colours[2, i]
        a0, a1, a2 = colours[0, above], colours[1, above], colours[2, above]
        b0, b1, b2 = colours[0, below], colours[1, below], colours[2, below]
        # The first and last column are repeated beyond the border. The columns between them form a loop without branches.
        for j, left, right in ((0, 0, min(1, width - 1)), (width - 1, max(width - 2, 0), width - 1)):
            magnitude[i, j], orientation[i, j] = _strongest(
                l0[right] - l0[left], b0[j] - a0[j], l1[right] - l1[left], b1[j] - a1[j], l2[right] - l2[left], b2[j] - a2[j]
            )
        r0, r1, r2, a0, a1, a2, b0, b1, b2 = l0[2:], l1[2:], l2[2:], a0[1:], a1[1:], a2[1:], b0[1:], b1[1:], b2[1:]
        out, out_orientation = magnitude[i, 1:], orientation[i, 1:]
        for j in range(width - 2):
            out[j], out_orientation[j] = _strongest(
                r0[j] - l0[j], b0[j] - a0[j], r1[j] - l1[j], b1[j] - a1[j], r2[j] - l2[j], b2[j] - a2[j]
            )
    return magnitude, orientation


@njit(inline="always")
def _strongest(
    x0: np.float32, y0: np.float32, x1: np.float32, y1: np.float32, x2: np.float32, y2: np.float32
) -> tuple[np.float32, np.uint8]:
    """Return the magnitude and orientation (0 to 3) of the largest of three gradients (x, y); the first of equal ones.

    All paths are computed and selected from, so that the compiler can use vector instructions.
    """
    square, second, third = x0 * x0 + y0 * y0, x1 * x1 + y1 * y1, x2 * x2 + y2 * y2
    more = second > square
    square, x, y = second if more else square, x1 if more else x0, y1 if more else y0
    more = third > square
    square, x, y = third if more else square, x2 if more else x, y2 if more else y
    # The angle is computed as in OpenCV's `fastAtan2`. With other rounding, one pixel had another orientation in 3 % of the
    # images, and sent a few patches to other leaves.
    across, down = abs(x), abs(y)
    ratio = min(across, down) / (max(across, down) + _EPSILON)
    ratio2 = ratio * ratio
    angle = (((_ATAN7 * ratio2 + _ATAN5) * ratio2 + _ATAN3) * ratio2 + _ATAN1) * ratio
    angle = angle if across >= down else _F(90) - angle
    angle = _F(180) - angle if x < _ZERO else angle
    half_turns = (_F(360) - angle) / _F(180) - _ONE if y < _ZERO else angle / _F(180)
    half_turns = _HALF if across + down < _FLAT else half_turns
    nearest = np.uint8(np.rint(half_turns * _F(ORIENTATIONS)))
    return np.sqrt(square), np.uint8(0) if nearest >= ORIENTATIONS else nearest


@njit(cache=True, nogil=True, error_model="numpy")
def _average_orientations(magnitude: np.ndarray, mean: np.ndarray, orientation: np.ndarray, out: np.ndarray) -> None:
    """Normalise gradients and average them over 2x2 px: all (first map), and those of each orientation (maps 1 to 4).

    Args:
        magnitude: float32 array (2h, 2w).
        mean: float32 array (2h, 2w), the local mean of the magnitude.
        orientation: uint8 array (2h, 2w), from 0 to 3.
        out: float32 array (5, h, w), which is written.
    """
    _, height, width = out.shape
    top, bottom = np.empty(2 * width, np.float32), np.empty(2 * width, np.float32)
    for i in range(height):
        magnitude0, magnitude1, mean0, mean1 = magnitude[2 * i], magnitude[2 * i + 1], mean[2 * i], mean[2 * i + 1]
        for j in range(2 * width):
            top[j] = magnitude0[j] / (mean0[j] + _NORMALIZATION) * _QUARTER
            bottom[j] = magnitude1[j] / (mean1[j] + _NORMALIZATION) * _QUARTER
        kinds0, kinds1 = orientation[2 * i], orientation[2 * i + 1]
        for j in range(width):
            out[0, i, j] = (top[2 * j] + top[2 * j + 1]) + (bottom[2 * j] + bottom[2 * j + 1])
        for kind in range(ORIENTATIONS):
            row = out[1 + kind, i]
            for j in range(width):
                row[j] = (
                    (top[2 * j] if kinds0[2 * j] == kind else _ZERO)
                    + (top[2 * j + 1] if kinds0[2 * j + 1] == kind else _ZERO)
                    + (bottom[2 * j] if kinds1[2 * j] == kind else _ZERO)
                    + (bottom[2 * j + 1] if kinds1[2 * j + 1] == kind else _ZERO)
                )


@njit(cache=True, nogil=True, error_model="numpy")
def _split_orientations(magnitude: np.ndarray, mean: np.ndarray, orientation: np.ndarray, out: np.ndarray) -> None:
    """Normalise gradients: all (first map), and those of each orientation (maps 1 to 4).

    Args:
        magnitude: float32 array (h, w).
        mean: float32 array (h, w), the local mean of the magnitude.
        orientation: uint8 array (h, w), from 0 to 3.
        out: float32 array (5, h, w), which is written.
    """
    _, height, width = out.shape
    for i in range(height):
        for j in range(width):
            out[0, i, j] = magnitude[i, j] / (mean[i, j] + _NORMALIZATION)
        for kind in range(ORIENTATIONS):
            for j in range(width):
                out[1 + kind, i, j] = out[0, i, j] if orientation[i, j] == kind else _ZERO
