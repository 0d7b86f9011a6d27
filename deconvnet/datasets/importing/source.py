"""What the importers have in common: a source of labelled photographs, and a photograph's labels as it is displayed."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from deconvnet.datasets.image_folder import list_image_files
from deconvnet.datasets.importing.regions import Painted, Region, paint
from deconvnet.datasets.voc import MIN_SIDE, invalid_id_reason
from infra import storage
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject
from proposals.image_codec import decode_image, encode_mask, image_size
from proposals.masks import VOID_ID

STAGE = "import"
BACKGROUND = "background"
_KEPT = (".jpg", ".jpeg", ".png")  # photographs that are copied byte for byte


@dataclass(frozen=True)
class Rules:
    """How annotations become masks.

    small_over_large: else later annotations lie over earlier ones; crowd_void: COCO's crowds are void, else one object each;
    others_void: classes that are not asked for are void, else background; strange_void: mask values without a class are
    void, else the photograph is set aside.
    """

    small_over_large: bool = True
    crowd_void: bool = True
    others_void: bool = False
    strange_void: bool = False
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class Labelled:
    """A photograph's file (`suffix` as it will be called) and masks, as displayed.

    classes: uint8 H×W, 255 void; objects: uint8 or uint16 H×W as `regions.Painted`, None where they are not known; overlap:
    pixels that several objects claim; hidden: objects of which nothing is seen; passed_over: annotations left out, and why.
    """

    image: bytes
    suffix: str
    classes: np.ndarray
    objects: np.ndarray | None = None
    overlap: int = 0
    hidden: int = 0
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A photograph to import. file: what messages name; split: where it is given; label: reads it, and raises BadInput."""

    image_id: str
    file: str
    split: str | None
    label: Callable[[], Labelled]


@dataclass
class Source:
    """What there is to import. classes: background first; rejects: what is known to be unusable; notes: words for the person."""

    classes: tuple[str, ...]
    entries: list[Entry] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict, repr=False)  # what the source calls the photographs, by id

    def add(self, name: str, file: str, split: str | None, label: Callable[[], Labelled]) -> None:
        """Take in the photograph that the source calls `name`, or reject it where it can't have a name of its own here."""
        image_id = image_id_of(name)
        if reason := invalid_id_reason(image_id) or (
            "its name begins or ends with a blank" if image_id != image_id.strip() else None
        ):
            self.rejects.append(Reject(image_id, file, STAGE, reason))
        elif image_id in self.names:
            self.rejects.append(Reject(image_id, file, STAGE, f"it would be called {image_id} as {self.names[image_id]} is"))
        else:
            self.names[image_id] = name
            self.entries.append(Entry(image_id, file, split, label))

    def reject(self, name: str, file: str, reason: str) -> None:
        self.rejects.append(Reject(image_id_of(name), file, STAGE, reason))


@dataclass(frozen=True)
class Part:
    """Photographs and their annotations: all there are, or those of one split."""

    images: str
    annotations: str
    split: str | None = None


def image_id_of(name: str) -> str:
    """The id of the photograph `name` (a relative path): its stem, with the folders before it."""
    path = PurePosixPath(name.replace("\\", "/"))
    return "_".join([*(p for p in path.parent.parts if p not in ("/", "..")), path.stem])


class Photographs:
    """The photographs below a folder (or s3:// prefix), listed once. Raises UserError where there are none."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.names = [each.name for each in list_image_files(folder)]
        self._whole = set(self.names)
        self._base: dict[str, list[str]] = {}
        for name in self.names:
            self._base.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, name: str) -> str | None:
        """The photograph that an annotation calls `name`: of that path below the folder, else the one file of that name."""
        path = name.replace("\\", "/")
        if path in self._whole:
            return path
        there = self._base.get(PurePosixPath(path).name, [])
        return there[0] if len(there) == 1 else None

    def read(self, name: str) -> bytes:
        return read_input(storage.join(self.folder, name))


def read_input(uri: str) -> bytes:
    """A file's content. Raises BadInput where it can't be had."""
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"there is no file {uri}") from None
    except PermissionError:
        raise BadInput(f"no permission to read {uri}") from None


def read_json(data: bytes) -> Any:
    """JSON in UTF-8, with or without a byte order mark. Raises BadInput."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from None


def chosen_classes(found: Sequence[str], wanted: Sequence[str], must_exist: bool = True) -> tuple[str, ...]:
    """Class names by id, background first: those `wanted`, in their order, or all that were `found` in the annotations.

    Raises UserError where they can't be classes; also, with `must_exist`, for wanted ones that are not there.
    """
    found = [name for name in dict.fromkeys(found) if name.lower() != BACKGROUND]
    names = [name for name in wanted if name.lower() != BACKGROUND] or found
    unknown = [name for name in names if name not in found]
    if unknown and (must_exist or len(unknown) == len(names)):
        there = ", ".join(found[:20]) + (", …" if len(found) > 20 else "")
        raise UserError(f"--classes: {', '.join(unknown)} is not in the annotations, which have {there or 'no class'}")
    if not 1 <= len(names) <= 254:
        raise UserError(
            f"the annotations have {len(names)} classes beside background, 1 to 254 are possible: choose by --classes"
        )
    if odd := [name for name in names if not name.strip() or not name.isprintable()]:
        raise UserError(f"the annotations have a class named {odd[0]!r}: give it a printable name")
    return (BACKGROUND, *names)


def class_ids(classes: Sequence[str], found: Sequence[str], rules: Rules) -> Mapping[str, int]:
    """The id that each name of `found` is painted with; those not chosen are background or void."""
    other = VOID_ID if rules.others_void else 0
    ids = {name: index for index, name in enumerate(classes)}
    return {name: 0 if name.lower() == BACKGROUND else ids.get(name, other) for name in found}


def shown_size(image: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height as displayed. Raises BadInput for a photograph that the pipeline would not take."""
    width, height = image_size(image, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{width}×{height} is too small: its shorter side must have {MIN_SIDE} px or more")
    return width, height


def annotated_size(image: bytes, size: tuple[int, int], max_pixels: int) -> bool:
    """Whether annotations of `size` (width, height) must be turned with their photograph, by its EXIF orientation.

    They were made on the photograph as displayed (False) or as stored (True), which shows where the sides change places. Raises
    BadInput where they are neither's.
    """
    width, height = shown_size(image, max_pixels)
    if size == (width, height):
        return False
    if size == (height, width) and _orientation(image) in (5, 6, 7, 8):
        return True
    raise BadInput(f"its annotations are for {size[0]}×{size[1]}, the photograph is {width}×{height} as displayed")


def turned(image: bytes, mask: np.ndarray) -> np.ndarray:
    """`mask` (uint8 or uint16 H×W, as the photograph is stored), turned as the photograph is to be displayed."""
    picture = Image.open(io.BytesIO(encode_mask(mask)))
    picture.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return np.asarray(ImageOps.exif_transpose(picture)).astype(mask.dtype)


def _orientation(image: bytes) -> int:
    return int(Image.open(io.BytesIO(image)).getexif().get(ExifTags.Base.Orientation, 1))


def outlined(
    image: bytes,
    name: str,
    size: tuple[int, int] | None,
    rules: Rules,
    regions: Callable[[int, int], tuple[list[Region], list[str]]],
) -> Labelled:
    """A photograph with outlines. size: width and height they are for, None: those displayed; regions: makes them of height and
    width, and says what it passed over. Raises BadInput.
    """
    width, height = size or shown_size(image, rules.max_pixels)
    turn = annotated_size(image, (width, height), rules.max_pixels)
    made, passed_over = regions(height, width)
    painted: Painted = paint(made, height, width, rules.small_over_large)
    classes, objects = painted.classes, painted.objects
    if turn:
        classes, objects = turned(image, classes), turned(image, objects)
    return Labelled(*file_of(image, name), classes, objects, painted.overlap, painted.hidden, tuple(passed_over))


def file_of(image: bytes, name: str) -> tuple[bytes, str]:
    """A photograph's file for our layout and its suffix: as it is, but kinds that the layout does not have become PNG."""
    suffix = PurePosixPath(name).suffix.lower()
    return (image, suffix) if suffix in _KEPT else (encode_mask(decode_image(image)), ".png")
