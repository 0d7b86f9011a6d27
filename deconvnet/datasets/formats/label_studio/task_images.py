"""Finding the image of each task of a Label Studio project, from the JSON export or from the number of the task."""

import re
import urllib.parse
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from deconvnet.datasets.image_folder import SUFFIXES
from deconvnet.datasets.importing.dataset import AnnotatedDataset
from deconvnet.datasets.importing.image_index import ImageIndex
from infra.errors import UserError

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # prefix that Label Studio gives the name of an uploaded file


def find_images(index: ImageIndex, tasks: Collection[str], exported: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Find the images of tasks.

    Args:
        index: images of the source.
        tasks: ids of the tasks.
        exported: the tasks of the JSON export; empty if there is none.

    Returns:
        The candidate images (their paths) by id of the task. If there is exactly one candidate, it is the image of the task.

    Raises:
        UserError: if there is no JSON export, and the images are not named by the tasks.
    """
    files: dict[str, set[str]] = {task: set() for task in tasks}
    if exported:
        named = [(str(task["id"]), each) for task in exported for each in _image_names(task)]
        found, _ = index.find_many(name for _, names in named for name in names)
        for task, names in named:
            if task in files:
                files[task].update([found[name] for name in names if name in found][:1])
        return files
    for name in index.names:
        number = PurePosixPath(name).stem.removeprefix("task-").lstrip("0") or "0"
        if number in files:
            files[number].add(name)
    if unnamed := [task for task, candidates in files.items() if not candidates]:
        raise UserError(
            f"the masks don't say which image belongs to task {unnamed[0]}: put the JSON export of the project beside them "
            "(or name the images by their tasks, such as 1.jpg)"
        )
    return files


def _image_names(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of the images that a task states: for each, the stated name, and the name before it was uploaded."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    names = []
    for address in (value for value in data.values() if isinstance(value, str)):
        try:
            parts = urllib.parse.urlsplit(address)
        except ValueError:  # a text, such as //[draft
            continue
        path = urllib.parse.parse_qs(parts.query).get("d", [urllib.parse.unquote(parts.path)])[0]
        name = PurePosixPath(path).name
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            folder = "" if "/upload/" in path else path[: -len(name)]  # Label Studio puts uploads in folders of its own
            names.append((folder + name, folder + _UPLOAD.sub("", name, count=1)))
    return names


def choose_images(
    dataset: AnnotatedDataset,
    index: ImageIndex,
    files: Mapping[str, Collection[str]],
    annotations: Mapping[str, int],
    uris: Mapping[str, str],
    exported: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Choose the tasks that have an image of their own and one annotation, and reject the others.

    Args:
        dataset: data set to whose `rejects` the other tasks are added.
        index: images of the source.
        files: candidate images by id of the task, as `find_images` returns them.
        annotations: number of annotations of each of these tasks, by its id.
        uris: path or URI of a file of each task, by which messages identify it.
        exported: the tasks of the JSON export; empty if there is none.

    Returns:
        The path of the image by the id of its task.
    """
    ids = Counter(str(task["id"]) for task in exported)
    uses = Counter(file for candidates in files.values() for file in candidates)
    chosen: dict[str, str] = {}
    for task, candidates in files.items():
        name, image = f"task-{task}", min(candidates, default="")
        if ids[task] > 1:
            reason = f"{ids[task]} tasks of the export have the id {task}: give each an id of its own"
        elif len(candidates) > 1:
            names = " and ".join(sorted(candidates))
            reason = f"task {task} has {len(candidates)} images, {names}: leave one of them below {index.folder}"
        elif not candidates:
            reason = f"below {index.folder}, no image or more than one has the name that task {task} states"
        elif uses[image] > 1:  # if two tasks fit the same image, one must be wrong
            reason = f"{image}, the image of task {task}, is also that of another task"
        elif annotations[task] > 1:
            name, reason = image, f"task {task} has {annotations[task]} annotations: keep one"
        else:
            chosen[task] = image
            continue
        dataset.reject(name, uris[task], reason)
    return chosen
