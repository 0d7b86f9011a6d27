"""Photographs in any folder: those below it, local or at s3://, and what each one's mask will be called."""

from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from infra import storage
from infra.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""In any letter case. Of files that differ in it alone the first of these is the photograph, and the others are refused."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file below the folder. stamp: its size and time of change. refused: why it can't be used, known from its name alone."""

    name: str
    stamp: str
    refused: str = ""

    @property
    def stem(self) -> str:
        """The name without suffix: what masks are called by."""
        return self.name[: -len(PurePosixPath(self.name).suffix)]


def list_image_files(folder: str, leave_out: str = "") -> list[ImageFile]:
    """The photographs below `folder`, sorted by name; hidden files, and those below the folder `leave_out`, are passed over.

    Raises UserError where there is no such folder, or no photograph in it.
    """
    fs, path = storage.filesystem(folder)
    if fs.get_file_info(path).type == pafs.FileType.File:
        raise UserError(f"{folder} is a file: name the folder that it is in")
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    root = path.rstrip("/") + "/"
    inside = storage.filesystem(leave_out)[1].rstrip("/") + "/" if leave_out else ""
    found = {
        name: f"{info.size}@{info.mtime_ns}"
        for info in infos
        if info.type == pafs.FileType.File
        and _is_photograph(name := info.path.removeprefix(root))
        and not (inside and info.path.startswith(inside))
    }
    if not found:
        where = "is not there" if not storage.exists(folder) else f"holds no photograph ({', '.join(SUFFIXES)})"
        raise UserError(f"{folder} {where}: name a folder, or an s3:// prefix, of photographs")
    return _without_clashes(found)


def _is_photograph(name: str) -> bool:
    """By its name. Hidden are also those that macOS leaves beside a photograph, with its suffix."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _without_clashes(found: dict[str, str]) -> list[ImageFile]:
    """Photographs by name and stamp; of those whose mask would be one file, all but the first are refused."""
    photographs = [ImageFile(name, stamp) for name, stamp in sorted(found.items())]
    first: dict[str, str] = {}
    for each in sorted(photographs, key=lambda p: (SUFFIXES.index(PurePosixPath(p.name).suffix.lower()), p.name)):
        first.setdefault(each.stem, each.name)
    return [
        each
        if first[each.stem] == each.name
        else ImageFile(each.name, each.stamp, f"its mask would be that of {first[each.stem]}: rename one of them")
        for each in photographs
    ]
