"""Listing the images in a folder of any layout, local or in a bucket, and choosing the names of their predicted masks."""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from infra import storage
from infra.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes of image files, in upper or lower case. If files differ only in the suffix, the earliest suffix here is used."""
ENDINGS = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))
"""Suffixes to try where the name of an image is known without its suffix."""
_MAX_NAMED = 10  # most files named in a message


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden: whether its name, or that of a folder in its relative path, begins with "."."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def visible_files(folder: str, suffixes: str | tuple[str, ...] = "") -> list[str]:
    """List the files in a folder and its subfolders that are not hidden.

    Args:
        folder: path or URI of the folder.
        suffixes: ends of the names to list, in lower case; names may have them in upper case. All names end with "".

    Returns:
        Their paths relative to the folder, in the order of `storage.list_files`.
    """
    return [name for name in storage.list_files(folder) if name.lower().endswith(suffixes) and not is_hidden(name)]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file in a folder.

    Attributes:
        name: path of the file relative to the folder.
        stamp: text made of the file's size and modification time; it changes when the file does; "" for a broken link.
        refused: sentence for the user that says why the image must not be used; empty if it may be used.
    """

    name: str
    stamp: str
    refused: str = ""

    @property
    def stem(self) -> str:
        """Return the relative path of the image without its suffix, which is also the name of its predicted mask."""
        return self.name[: -len(PurePosixPath(self.name).suffix)]


@dataclass(frozen=True)
class FolderFiles:
    """The files in a folder and its subfolders. Hidden files and folders are not counted.

    Attributes:
        images: the images, sorted by name.
        other_files: paths, relative to the folder, of the files that are not images, sorted. These are all files whose suffix is
            not in `SUFFIXES`, the list of suffixes of image files.
    """

    images: list[ImageFile]
    other_files: list[str]

    @property
    def other_files_text(self) -> str:
        """Return a sentence that counts the files in `other_files` and names the first ten; "" if there are no such files."""
        if not self.other_files:
            return ""
        counts = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in self.other_files)
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(8))
        names = ", ".join(self.other_files[:_MAX_NAMED]) + (", …" if len(self.other_files) > _MAX_NAMED else "")
        return f"skipped {len(self.other_files):,} files whose suffix is not that of an image ({kinds}): {names}"


def list_folder(folder: str, exclude: str = "") -> FolderFiles:
    """List the images and the other files in a folder and its subfolders. Hidden files and folders are ignored.

    A hidden file has a name that begins with ".". macOS creates such files beside images, with the same suffix. If several
    images differ only in the suffix, such as a.jpg and a.png, their masks would have the same name. So only one of these images
    is kept, and the others are marked as refused. An image is also refused if its name is too long for a file with another
    suffix, or if it is a broken symbolic link.

    Args:
        folder: local folder or bucket prefix.
        exclude: folder whose files are ignored, such as the folder to which the masks are written; empty if there is none.

    Returns:
        The images and the other files.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    fs, path = storage.filesystem(folder)
    if fs.get_file_info(path).type == pafs.FileType.File:
        raise UserError(f"{folder} is a file: name the folder that it is in")
    left_out = storage.filesystem(exclude)[1].rstrip("/") + "/" if exclude else ""
    stamps: dict[str, str] = {}
    other_files: list[str] = []
    for file in storage.list_sizes(folder):
        name = PurePosixPath(file.name)
        if is_hidden(file.name) or (left_out and storage.join(path, file.name).startswith(left_out)):
            continue
        if name.suffix.lower() in SUFFIXES:
            stamps[str(name)] = "" if file.dangling else f"{file.size}@{file.mtime_ns}"
        else:
            other_files.append(str(name))
    found = FolderFiles(_refuse_unusable(stamps), sorted(other_files))
    if not stamps:
        problem = "does not exist" if not storage.exists(folder) else f"holds no image ({', '.join(SUFFIXES)})"
        others = f"; {found.other_files_text}" if other_files else ""
        raise UserError(f"{folder} {problem}: name a folder, or a bucket prefix, of images{others}")
    return found


def _refuse_unusable(stamps: dict[str, str]) -> list[ImageFile]:
    """Mark unusable images as refused: broken links, names that are too long, and images whose masks would have the same name.

    If images differ only in the suffix, such as a.jpg and a.png, the one whose suffix comes first in `SUFFIXES` is kept. The
    others are refused.

    Args:
        stamps: text made of the file's size and modification time (`ImageFile.stamp`), by the relative path of the image.

    Returns:
        All images, sorted by name. The field `refused` of a refused image says what is wrong.
    """
    first: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name in sorted(stamps, key=lambda name: (SUFFIXES.index(PurePosixPath(name).suffix.lower()), name)):
        stem = ImageFile(name, "").stem
        if not stamps[name]:
            refused[name] = "it is a broken link: was the file fetched (dvc pull, git annex get)?"
        elif any(len(part.encode()) > storage.MAX_STEM_BYTES for part in stem.split("/")):
            refused[name] = (
                f"its name without suffix, or that of a folder, is longer than {storage.MAX_STEM_BYTES} bytes: shorten it"
            )
        elif (used := first.setdefault(stem, name)) != name:
            refused[name] = f"its mask would have the same name as that of {used}: rename one of them"
    return [ImageFile(name, stamp, refused.get(name, "")) for name, stamp in sorted(stamps.items())]
