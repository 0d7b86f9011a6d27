"""Deciding by evidence whether images with EXIF orientation were annotated as they are stored or as they are displayed.

The EXIF orientation of an image file says how the stored pixels must be turned or mirrored for display. So an image has two
frames, "stored" and "displayed", whose width and height may be swapped. Some annotation tools use one frame, some the other. Some
even state the size of one frame and write down points in the other.

The evidence for a frame is the size that an annotation file states, and the points, which must lie inside the image. Where the
evidence of one image does not decide, the other images of the same annotation file are considered.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from deconvnet.datasets.importing.regions import as_int
from deconvnet.datasets.voc import MIN_SIDE
from infra.errors import BadInput
from proposals.image_codec import DAMAGE_ERRORS, encode_mask, image_size

Frame = Literal["stored", "displayed"]
_ENOUGH = 100  # reading stops once this many images of an annotation file show their frame
_ENOUGH_REORIENTED = 1000  # reading also stops after this many images with an EXIF orientation
_SPREAD = 500  # this many images, evenly spread over the annotation file, are read first
GUESSED = "has an EXIF orientation, and nothing tells whether it was annotated as stored or as displayed: displayed is assumed"
_FEW = 0.1  # a minority of up to this share of the majority is ignored; its points may have been set carelessly


def displayed_size(image: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the width and height of an image as displayed, that is, with its EXIF orientation applied.

    Args:
        image: encoded bytes of the image.
        max_pixels: largest number of pixels that the image may have.

    Returns:
        Width and height in px.

    Raises:
        BadInput: if the image is damaged, has too many pixels, or is too small for training.
    """
    width, height = image_size(image, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{width}×{height} is too small: its shorter side must have {MIN_SIDE} px or more")
    return width, height


@dataclass(frozen=True)
class Evidence:
    """The evidence of one image for the frame in which it was annotated.

    A frame is "stored" (the pixels as the file stores them) or "displayed" (turned as the EXIF orientation demands).

    Attributes:
        sizes: width and height of the image, in px, by frame.
        reoriented: True if the two frames differ, because the EXIF orientation turns or mirrors the image.
        size: the frame that has the size stated in the annotations. None if both frames have this size, or no size is stated.
        points: the only frame that holds all points and fits all masks of the annotations. None if both do.
    """

    sizes: dict[Frame, tuple[int, int]]
    reoriented: bool
    size: Frame | None
    points: Frame | None


def collect_evidence(
    image: bytes, stated: Sequence[Any], points: np.ndarray, masks: Mapping[str, tuple[int, int]], max_pixels: int
) -> Evidence:
    """Collect the evidence of one image for the frame in which it was annotated, as stored or as displayed.

    Args:
        image: encoded bytes of the image.
        stated: width and height, in px, that the annotations give for the image. If they are not numbers, no size is stated.
        points: float64 array (N, 2) of x, y: all points of its annotations.
        masks: width and height, in px, of the masks among its annotations, by the annotation's name, such as "annotation 7".
        max_pixels: largest number of pixels that the image may have.

    Returns:
        The evidence. It may be for one frame, for neither, or contradictory.

    Raises:
        BadInput: if the image is unusable, or its annotations fit it neither as stored nor as displayed.
    """
    width, height = displayed_size(image, max_pixels)
    orientation = _orientation(image)
    reoriented = orientation != 1
    sizes: dict[Frame, tuple[int, int]] = {
        "displayed": (width, height),
        "stored": (height, width) if orientation >= 5 else (width, height),
    }
    shown = f"the image is {width}×{height} as displayed"
    size: tuple[int, ...] | None = None
    with contextlib.suppress(BadInput):
        size = tuple(as_int(side, "its size") for side in stated)
    fitting = [frame for frame in sizes if size in (None, sizes[frame])]
    if size and not fitting:
        raise BadInput(f"its annotations are for {size[0]}×{size[1]}, {shown}")
    holding: list[Frame] = list(sizes)
    for name, mask_size in masks.items():
        holding = [frame for frame in holding if sizes[frame] == mask_size]
        if not holding:
            raise BadInput(f"{name}: its mask is {mask_size[0]}×{mask_size[1]}, {shown}")
    if reoriented:
        around = _frames_around(points, sizes)
        holding = [frame for frame in holding if frame in around]
        if not holding:
            raise BadInput(f"its points fit it neither as stored nor as displayed ({_describe_extent(points)}, {shown})")
    elif width != height and not masks:
        swap: dict[Frame, tuple[int, int]] = {"displayed": (width, height), "stored": (height, width)}
        if _frames_around(points, swap, slack=0.1) == ["stored"]:
            raise BadInput(f"its points fit an image of {height}×{width} ({_describe_extent(points)}), {shown}: was it turned?")
    if not size and not _frames_around(points, sizes, slack=0.5):
        raise BadInput(f"its points lie far outside of it ({_describe_extent(points)}, {shown}): was it resized?")
    return Evidence(sizes, reoriented, *(frames[0] if len(frames) == 1 else None for frames in (fitting, holding)))


def _frames_around(points: np.ndarray, sizes: Mapping[Frame, tuple[int, int]], slack: float = 0.05) -> list[Frame]:
    """Return which of the frames "stored" and "displayed" hold all points of an image.

    Points that were set carelessly may lie a little outside. If neither frame holds the points even so, but they lie much less
    outside one frame than outside the other, that frame is returned.

    Args:
        points: float64 array (N, 2) of x, y.
        sizes: width and height of the image in px, by frame.
        slack: how far points may lie outside, as a share of the longer side; 2 px are always allowed.

    Returns:
        The frames that hold the points; none, one or both.
    """
    outside = {frame: max(float(np.max([-points, points - size], initial=0)), 0.0) for frame, size in sizes.items()}
    holding = [frame for frame, size in sizes.items() if outside[frame] <= max(2.0, slack * max(size))]
    if not holding:
        (near, small), (_, large) = sorted(outside.items(), key=lambda item: item[1])
        holding = [near] if small <= 0.1 * max(sizes[near]) and large >= 5 * small else []
    return holding


def _describe_extent(points: np.ndarray) -> str:
    """Say how far points, an array (N, 2) of x, y, reach, such as "they reach from 0, 0 to 80, 110"."""
    low, high = points.min(axis=0).round().astype(int), points.max(axis=0).round().astype(int)
    return f"they reach from {low[0]}, {low[1]} to {high[0]}, {high[1]}"


@dataclass
class FrameChooser:
    """Chooses the frame, "stored" or "displayed", in which each image of one annotation file was annotated.

    One object serves one annotation file, or one folder of such files, whose images are evidence for each other. It may be used
    from several threads.

    Attributes:
        evidence_readers: for each image of the file, a function that returns its evidence, or None if the image is displayed as
            it is stored. It may raise BadInput. The functions are called once `choose` gets an image whose own
            evidence does not decide. All must be in the list before `choose` is called.
    """

    evidence_readers: list[Callable[[], Evidence | None]] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)
    _votes: Counter[tuple[Frame | None, Frame | None]] | None = None

    def choose(self, evidence: Evidence) -> tuple[Frame, str]:
        """Choose the frame in which an image was annotated.

        The points of the image decide first. If they fit both frames, the points of other images decide. Only images whose stated
        size is for the same frame are considered, unless this image's stated size fits both. If there are no such images, the
        stated size of this image decides. If it fits both frames, as for a square image, the stated sizes of all images decide.

        Args:
            evidence: evidence of the image.

        Returns:
            frame: "stored" or "displayed".
            remark: phrase for the user if there is no evidence at all, so that "displayed" is a guess, or if the stated size is
                for the other frame; otherwise "".

        Raises:
            BadInput: if the points of the image fit both frames and the other images contradict each other, or if the points of
                the image contradict the points of nearly all other images.
        """
        if not evidence.reoriented:
            return "displayed", ""
        if evidence.points and evidence.points == evidence.size:
            return evidence.points, ""
        points: Counter[Frame] = Counter()
        sizes: Counter[Frame] = Counter()
        for (size, frame), count in self._read_votes().items():
            if frame and evidence.size in (None, size):
                points[frame] += count
            if size:
                sizes[size] += count
        if evidence.points:
            others = points["stored" if evidence.points == "displayed" else "displayed"]
            if points[evidence.points] < _FEW * others:
                raise BadInput("its points lie outside its stated size, unlike those of nearly all other images of the file")
        chosen = evidence.points or _most(points) or evidence.size or _most(sizes)
        if chosen and evidence.size and chosen != evidence.size:
            return chosen, f"was annotated as {chosen}, though its size is stated as {evidence.size}"
        return chosen or "displayed", "" if chosen else GUESSED

    def _read_votes(self) -> Counter[tuple[Frame | None, Frame | None]]:
        """Collect the evidence of the images of the file, until there is enough. This is done once, and its result is kept.

        Other threads that call this method meanwhile wait for the result.

        Returns:
            The number of images by the pair of `Evidence.size` and `Evidence.points`. Each of the two is a frame or None.
        """
        with self._lock:
            if self._votes is None:
                self._votes = Counter()
                step = -(-len(self.evidence_readers) // _SPREAD)
                for read_evidence in (each for start in range(step) for each in self.evidence_readers[start::step]):
                    with contextlib.suppress(BadInput):  # the image is rejected when it is loaded
                        if evidence := read_evidence():
                            self._votes[evidence.size, evidence.points] += 1
                    telling = sum(count for (_, points), count in self._votes.items() if points)
                    if telling >= _ENOUGH or self._votes.total() >= _ENOUGH_REORIENTED:
                        break
            return self._votes


def _most(votes: Counter[Frame]) -> Frame | None:
    """Return the frame ("stored" or "displayed") with most of the votes, or None if there are no votes.

    Args:
        votes: number of images whose evidence is for each frame.

    Raises:
        BadInput: if both frames have votes, and neither has ten times as many as the other.
    """
    ranked = votes.most_common()
    if len(ranked) == 2 and ranked[1][1] > _FEW * ranked[0][1]:
        raise BadInput("it has an EXIF orientation, and some images of its file were annotated as stored, others as displayed")
    return ranked[0][0] if ranked else None


def is_reoriented(image: bytes) -> bool:
    """Return whether an image has an EXIF orientation that turns or mirrors it for display.

    Args:
        image: encoded bytes of the image.

    Raises:
        BadInput: if the file is not an image.
    """
    return _orientation(image) != 1


def apply_orientation(image: bytes, mask: np.ndarray) -> np.ndarray:
    """Rotate and mirror a mask in the way that the EXIF orientation of its image demands.

    Args:
        image: encoded bytes of the image.
        mask: uint8 or uint16 array (H, W) that fits the image as stored.

    Returns:
        Array of the same dtype that fits the image as displayed.
    """
    picture = Image.open(io.BytesIO(encode_mask(mask)))
    picture.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return np.asarray(ImageOps.exif_transpose(picture)).astype(mask.dtype)


def _orientation(image: bytes) -> int:
    """Read the EXIF orientation of an image.

    Args:
        image: encoded bytes of the image.

    Returns:
        A number from 1 to 8. It is 1 (displayed as stored) if the image has no EXIF orientation, or a number that means nothing.

    Raises:
        BadInput: if the file is not an image.
    """
    try:
        found = int(Image.open(io.BytesIO(image)).getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE_ERRORS:
        raise BadInput("not an image") from None
    return found if 1 <= found <= 8 else 1
