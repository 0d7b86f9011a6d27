"""Find and read the images of a data set that is imported."""

import json
import posixpath
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from deconvnet.datasets.image_folder import list_image_files
from infra import storage
from infra.errors import BadInput
from proposals.image_codec import decode_image, encode_png

_SAME_COLOUR = 24  # difference of two mean colours (0 to 255) that compressing an image again may cause
_COPIED = (".jpg", ".jpeg", ".png")  # images of these suffixes are copied byte for byte


class NameIndex:
    """A list of paths of images, for finding them by the names in annotations or lists.

    A name that an annotation file lists may differ in its spelling from the path: in the Unicode form of accented letters, or by
    percent-encoding. It may also name more or fewer folders. But `find` never takes an image of the same name in another folder:

    * A name without folders fits any image of that file name, if there is only one.
    * For a name such as x/a/b/1.jpg, the image must lie directly in the first of the folders x/a/b, a/b and b that exists.
    * If none of them exists, the image must lie in the folder of images itself, not in a subfolder of it. But if none of the
      folders of a whole list exists, the list was made elsewhere. Then `find_all` finds images by their file names alone.

    Attributes:
        folder: the folder or bucket prefix of the images. Its name may be part of the names that are searched.
        names: paths of the images relative to the folder.
    """

    def __init__(self, names: Sequence[str], folder: str) -> None:
        """Create an index of `names`, which are paths relative to `folder`."""
        self.folder = folder
        self.names = names
        self._paths = set(self.names)
        self._root_name = common_spelling(PurePosixPath(folder.rstrip("/")).name)
        self._by_path: dict[str, list[str]] = defaultdict(list)  # by path in its common spelling
        self._by_file_name: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._by_path[common_spelling(name)].append(name)
            self._by_file_name[PurePosixPath(common_spelling(name)).name].append(name)
        self._folders: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)  # folders, by each ending of their paths
        for parts in {tuple(path.split("/")[:-1]) for path in self._by_path}:
            for end in range(1, len(parts) + 1):
                for start in range(end):
                    self._folders[parts[start:end]].add(parts[:end])

    def find(self, name: str) -> str | None:
        """Find an image by the name that an annotation gives it.

        Use `find_all` where all names are known beforehand: it also notices names that compete for the same image.

        Args:
            name: path of the image, in which folders are separated by "/" or "\\".

        Returns:
            The path of the image relative to the folder. None if no image or more than one fits.
        """
        return self._locate(name)[0]

    def find_all(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
        """Find the images of all names that a data set lists.

        An image may fit several names. If one of them is exactly its path, only that name finds it. Different spellings of its
        path, such as 1.jpg and ./1.jpg, all find it, so count entries by image and not by name. If none of the listed folders
        exists, the list was made elsewhere. Then an image is found by its file name alone, if no other image and no other listed
        name have the same file name.

        Args:
            names: paths of the images, in which folders are separated by "/" or "\\". Repetitions are ignored.

        Returns:
            found: path of the image relative to the folder, by name.
            missing: for each other name a sentence with the reason why it was not found.
            notes: sentences for the user about images that were found by their file name alone; usually none.
        """
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        claims: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(names):
            file, reason = self._locate(name)
            if file is None:
                missing[name] = reason
            else:
                found[name] = file
                claims[file].append(name)
        for file, claimants in claims.items():
            owners = [name for name in claimants if _clean(name) == file]
            for name in claimants if len(claimants) > 1 else ():
                if name not in owners:
                    other, claim = (owners[0], "is that of") if owners else (next(n for n in claimants if n != name), "also fits")
                    del found[name]
                    missing[name] = f"the only image below {self.folder} that fits, {file}, {claim} another entry, {other}"
        if any(map(self._folder_exists, (*found, *missing))) or not (elsewhere := self._by_file_name_alone(missing, found)):
            return found, missing, []
        name, file = next(iter(elsewhere.items()))
        note = (
            f"none of the folders that are listed is below {self.folder}, so {len(elsewhere):,} images were found by their file name "
            f"alone, such as {file} for {name}: check that they are the annotated ones"
        )
        return found | elsewhere, {name: reason for name, reason in missing.items() if name not in elsewhere}, [note]

    def _folder_exists(self, name: str) -> bool:
        """Return whether any of the folders x/a/b, a/b and b exists, for a name from a list such as x/a/b/1.jpg."""
        folders = PurePosixPath(common_spelling(_clean(name))).parts[:-1]
        return any(folders[start:] in self._folders for start in range(len(folders)))

    def _by_file_name_alone(self, names: Iterable[str], found: Mapping[str, str]) -> dict[str, str]:
        """Find images by their file names, whatever folders are listed.

        Args:
            names: names of images from the annotations. Images are searched for these.
            found: images that were found before, by the name in the annotations. They are not given to another name.

        Returns:
            The path of the image by the name in the annotations. A name is left out if another of the names has the same file
            name, or if not exactly one image has it.
        """
        sharing: dict[str, list[str]] = defaultdict(list)
        for name in names:
            sharing[PurePosixPath(common_spelling(_clean(name))).name].append(name)
        taken = set(found.values())
        return {
            listed[0]: files[0]
            for file_name, listed in sharing.items()
            if len(files := self._by_file_name.get(file_name, [])) == len(listed) == 1 and files[0] not in taken
        }

    def _locate(self, name: str) -> tuple[str | None, str]:
        """Find an image by the name that an annotation gives it.

        Args:
            name: path of the image, in which folders are separated by "/" or "\\".

        Returns:
            The path of the image relative to the folder, and "". If it is not found, None and a sentence with the reason.
        """
        path = _clean(name)
        if path in self._paths:
            return path, ""
        *folders, file_name = PurePosixPath(common_spelling(path)).parts or ("",)
        candidates = self._by_path.get(common_spelling(path)) or self._in_folders(folders, file_name)
        if len(candidates) > 1:  # they may differ in their percent-encoding alone
            listed = PurePosixPath(normalise(path)).name
            candidates = [each for each in candidates if PurePosixPath(normalise(each)).name == listed] or candidates
        if len(candidates) == 1:
            return candidates[0], ""
        reason = f"no such image below {self.folder}"
        if candidates:
            return None, f"{len(candidates)} images below {self.folder} have this name"
        if file_name in self._by_file_name:
            return None, f"{reason} in the folder {'/'.join(folders)}; images of the same name in other folders are not taken"
        return None, reason

    def _in_folders(self, folders: Sequence[str], file_name: str) -> list[str]:
        """Find the images with a given file name in the folders where they may lie by the rules of this class.

        Args:
            folders: names of the folders in an annotation, outermost first, in their common spelling (see `common_spelling`).
            file_name: file name in its common spelling.

        Returns:
            The paths of the images, relative to the folder of images.
        """
        if not folders or (folders[-1] == self._root_name and (folders[-1],) not in self._folders):
            return self._by_file_name.get(file_name, [])
        for length in range(len(folders), 0, -1):
            ending = tuple(folders[-length:])
            if ending in self._folders:
                # Of the two paths one must be the end of the other: a/1/x.jpg is not b/1/x.jpg.
                fitting = [parts for parts in self._folders[ending] if length in (len(folders), len(parts))]
                return [file for parts in fitting for file in self._by_path.get("/".join((*parts, file_name)), [])]
        return self._by_path.get(file_name, [])


class ImageIndex(NameIndex):
    """A list of all images in a folder or bucket prefix and its subfolders; their paths are sorted."""

    def __init__(self, folder: str) -> None:
        """List the images of a folder and its subfolders.

        Args:
            folder: path of the folder, or bucket prefix.

        Raises:
            UserError: if there is no such folder, or no image in it.
        """
        super().__init__([file.name for file in list_image_files(folder)], folder)

    def read_named(self, name: str) -> tuple[bytes, str]:
        """Read an image file, as `read` does. Return its bytes, and `name` unchanged, whose suffix tells the image format."""
        return self.read(name), name

    def read(self, name: str) -> bytes:
        """Read an image file.

        Args:
            name: path of the image relative to the folder.

        Returns:
            The bytes of the file.

        Raises:
            BadInput: if there is no such file, or no permission to read it.
        """
        return read_input(storage.join(self.folder, name))


def normalise(text: str) -> str:
    """Return a text with accented letters in Unicode's composed form (NFC), which macOS's file names do not have."""
    return unicodedata.normalize("NFC", text)


def common_spelling(path: str) -> str:
    """Return the common spelling of a path: with percent-encoding decoded and accented letters composed."""
    return normalise(urllib.parse.unquote(path))


def _clean(name: str) -> str:
    """Return a path from a list with "/" instead of "\\" between its folders, and without ".", ".." and a leading "/"."""
    path = posixpath.normpath(name.replace("\\", "/"))
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))


def read_input(uri: str) -> bytes:
    """Read a file that belongs to one image. If that is impossible, raise BadInput, so that only this image is left out.

    Args:
        uri: path or URI of the file.

    Returns:
        The bytes of the file.

    Raises:
        BadInput: if there is no such file, or no permission to read it.
    """
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"there is no file {uri}") from None
    except PermissionError:
        raise BadInput(f"no permission to read {uri}") from None


def read_text(uri: str, encoding: str | None = None) -> str:
    """Read a text file. Its encoding is UTF-8, UTF-16, UTF-32 or one that the user named.

    Args:
        uri: path or URI of the file.
        encoding: name of the encoding of files that are in none of the three, such as "gbk". None to refuse such files.

    Returns:
        The text, without a byte order mark.

    Raises:
        BadInput: if the file can't be read, or has another encoding.
    """
    data = read_input(uri)
    unicode = json.detect_encoding(data)  # by the byte order mark, or the zeros of UTF-16 and UTF-32
    for name in filter(None, (unicode, encoding)):
        try:
            return data.decode(name)
        except UnicodeDecodeError as error:
            problem = f"byte {error.start} is not text in {name.removesuffix('-sig').upper()}"
    raise BadInput(f"{problem}: save the file in UTF-8, or name its encoding by --encoding (gbk, big5, cp1252 …)")


def read_json(uri: str, encoding: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        uri: path or URI of the file.
        encoding: name of the encoding of files that are not in UTF-8, as for `read_text`.

    Returns:
        The content of the file as Python objects: usually a dictionary or a list.

    Raises:
        BadInput: if the file can't be read or is not JSON.
    """
    text = read_text(uri, encoding)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from None


def same_image(one: bytes, other: bytes) -> bool:
    """Return whether two files hold the same image. One of them may have been compressed again or turned upright.

    Args:
        one: encoded bytes of an image.
        other: encoded bytes of another image.

    Returns:
        True if the images have the same size as displayed, and the mean colours of all blocks of about 8×8 pixels are alike. False
        if one of them can't be decoded.
    """
    try:
        pictures = [Image.fromarray(decode_image(data)) for data in (one, other)]
    except BadInput:
        return False
    if pictures[0].size != pictures[1].size:
        return False
    grid = [max(1, side // 8) for side in pictures[0].size]
    blocks = [np.asarray(picture.resize((grid[0], grid[1]), Image.Resampling.BOX), np.int16) for picture in pictures]
    return bool(np.abs(blocks[0] - blocks[1]).max() <= _SAME_COLOUR)


def as_layout_file(image: bytes, name: str) -> tuple[bytes, str]:
    """Convert an image file to PNG unless its format is allowed in VOC's layout. Raise BadInput if it can't be decoded for this.

    Args:
        image: encoded bytes of the image.
        name: file name of the image, whose suffix tells its format.

    Returns:
        The bytes, unchanged for JPEG and PNG files, and their suffix in lower case: ".jpg", ".jpeg" or ".png".
    """
    suffix = PurePosixPath(name).suffix.lower()
    return (image, suffix) if suffix in _COPIED else (encode_png(decode_image(image)), ".png")
