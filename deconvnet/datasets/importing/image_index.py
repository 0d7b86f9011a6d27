"""Find the images of a data set by the names that its annotations or lists give them."""

import posixpath
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from deconvnet.datasets.image_folder import SUFFIXES, list_folder
from deconvnet.datasets.importing.images import SourceImage, read_input
from infra import storage


class NameIndex:
    """An index of image paths, which finds an image by the name that an annotation file or a list gives it.

    The name may be spelled differently from the path (Unicode form of accented letters, percent-encoding), and may have more or
    fewer folders. But an image of the same name in another folder is never found:

    * A name without folders fits any image of that file name, if there is only one.
    * For a name such as x/a/b/1.jpg, the image must lie directly in the first of the folders x/a/b, a/b and b that exists.
    * If none of them exists, the image must lie in the folder of images itself, not in a subfolder of it.
    * A name without the suffix of an image file, such as frame_1, fits an image whose path is this name and such a suffix.

    `find_many` and `find_listed` consider all listed names together. If at least one listed folder exists (or is the folder of
    images itself), then images in listed folders that don't exist are missing. If no listed folder exists, the list was made on
    another machine, and `find_listed` finds the images by their file names, whatever the folders.

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
        _add_stems(self._by_path)
        _add_stems(self._by_file_name)

    def find(self, name: str) -> str | None:
        """Find an image by the name that an annotation gives it.

        Use `find_listed` or `find_many` where all names are known beforehand.

        Args:
            name: path of the image, in which folders are separated by "/" or "\\".

        Returns:
            The path of the image relative to the folder. None if no image or more than one fits.
        """
        return self._locate(name)[0]

    def find_many(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Find the image of each name of a list. Several names may find the same image.

        Args:
            names: paths of the images, in which folders are separated by "/" or "\\". Repetitions are ignored.

        Returns:
            found: path of the image relative to the folder, by name.
            missing: for each other name a sentence with the reason why it was not found.
        """
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        existing = {name: self._folder_exists(name) for name in names}
        folders_known = any(existing.values())
        for name, exists in existing.items():
            file, reason = self._locate(name)
            if file is not None and folders_known and not exists and (folders := _clean(name).rpartition("/")[0]):
                file, reason = None, self._not_in(folders)
            if file is None:
                missing[name] = reason
            else:
                found[name] = file
        return found, missing

    def find_listed(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
        """Find the images of all names that a data set lists.

        If several names fit one image, only the names that are its path find it, such as 1.jpg, ./1.jpg and 1 for 1.jpg. (So
        count entries by image, not by name.) If none of them is its path, none finds it.

        If no listed folder exists, the list was made on another machine. Then an image is found by its file name, whatever its
        folder, unless another image or another listed name has the same file name.

        Args:
            names: paths of the images, in which folders are separated by "/" or "\\". Repetitions are ignored.

        Returns:
            found: path of the image relative to the folder, by name.
            missing: for each other name a sentence with the reason why it was not found.
            notes: sentences for the user about images that were found by file name, whatever their folder; usually none.
        """
        found, missing = self.find_many(names)
        claims: dict[str, list[str]] = defaultdict(list)
        for name, file in found.items():
            claims[file].append(name)
        for file, claimants in claims.items():
            owners = [name for name in claimants if _clean(name) in (file, _without_suffix(file))]
            for name in claimants if len(claimants) > 1 else ():
                if name not in owners:
                    other, claim = (owners[0], "is that of") if owners else (next(n for n in claimants if n != name), "also fits")
                    del found[name]
                    missing[name] = f"the only image below {self.folder} that fits, {file}, {claim} another entry, {other}"
        if any(map(self._folder_exists, (*found, *missing))) or not (elsewhere := self._by_file_name_alone(missing, claims)):
            return found, missing, []
        name, file = next(iter(elsewhere.items()))
        note = (
            f"none of the folders that are listed is below {self.folder}, so {len(elsewhere):,} images were found by their file "
            f"name alone, such as {file} for {name}: check that they are the annotated ones"
        )
        return found | elsewhere, {name: reason for name, reason in missing.items() if name not in elsewhere}, [note]

    def _folder_exists(self, name: str) -> bool:
        """Return whether one of the folders x/a/b, a/b and b exists, or b is the folder of images, for the name x/a/b/1.jpg."""
        folders = PurePosixPath(common_spelling(_clean(name))).parts[:-1]
        return folders[-1:] == (self._root_name,) or any(folders[start:] in self._folders for start in range(len(folders)))

    def _by_file_name_alone(self, names: Iterable[str], taken: Collection[str]) -> dict[str, str]:
        """Find images by their file names, whatever folders are listed.

        Args:
            names: names of images from the annotations. Images are searched for these.
            taken: images that were found before. They are not given to another name.

        Returns:
            The path of the image by the name in the annotations. A name is left out if another of the names fits the same image,
            or if not exactly one image has its file name.
        """
        claims: dict[str, list[str]] = defaultdict(list)
        for name in names:
            files = self._by_file_name.get(PurePosixPath(common_spelling(_clean(name))).name, [])
            if len(files) == 1 and files[0] not in taken:
                claims[files[0]].append(name)
        return {claimants[0]: file for file, claimants in claims.items() if len(claimants) == 1}

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
        if len(candidates) > 1:  # they may differ only in their percent-encoding
            listed = PurePosixPath(normalise(path)).name
            spelled = {each: PurePosixPath(normalise(each)).name for each in candidates}
            same = [each for each in candidates if listed in (spelled[each], _without_suffix(spelled[each]))]
            candidates = same or candidates
        if len(candidates) == 1:
            return candidates[0], ""
        if candidates:
            return None, f"{len(candidates)} images below {self.folder} have this name"
        if file_name in self._by_file_name:
            return None, self._not_in("/".join(folders))
        return None, f"no such image below {self.folder}"

    def _not_in(self, folders: str) -> str:
        """Return the reason for an image that is not in the listed `folders`, though another folder has an image of this name."""
        return f"no such image below {self.folder} in the folder {folders}; images of the same name in other folders are not used"

    def _in_folders(self, folders: Sequence[str], file_name: str) -> list[str]:
        """Find the images with a given file name in the folders in which the class allows it to be.

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
        super().__init__([file.name for file in list_folder(folder).images], folder)

    def read_named(self, name: str) -> SourceImage:
        """Read an image file, as `read` does, and return it with its `name`, whose suffix tells the image format."""
        return SourceImage(self.read(name), name)

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


def complete_name(name: str, file: str) -> str:
    """Return the listed name of an image. If it has no image suffix, that of the image's `file` is appended."""
    return name if _without_suffix(name) != name else name + PurePosixPath(file).suffix


def normalise(text: str) -> str:
    """Convert accented letters to Unicode's composed form (NFC). File names on macOS have the decomposed form."""
    return unicodedata.normalize("NFC", text)


def common_spelling(path: str) -> str:
    """Return the common spelling of a path: with percent-encoding decoded and accented letters composed."""
    return normalise(urllib.parse.unquote(path))


def _clean(name: str) -> str:
    """Return a path from a list with "/" instead of "\\" between its folders, and without ".", ".." and a leading "/"."""
    path = posixpath.normpath(name.replace("\\", "/"))
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))


def _without_suffix(path: str) -> str:
    """Return a path without the suffix of an image file, such as ".jpg". Other endings, as in "v1.2", are no suffix."""
    suffix = PurePosixPath(path).suffix
    return path[: -len(suffix)] if suffix.lower() in SUFFIXES else path


def _add_stems(files_by_name: dict[str, list[str]]) -> None:
    """Also add each image under its name without suffix (1 for 1.jpg), unless the dictionary has that name already."""
    stems: dict[str, list[str]] = defaultdict(list)
    for name, files in files_by_name.items():
        stem = _without_suffix(name)
        if stem != name and stem == _without_suffix(stem):
            stems[stem] += files
    files_by_name.update({stem: files for stem, files in stems.items() if stem not in files_by_name})
