"""The table `predictions` of a folder of images: its columns, and the plan of a run.

The table is a Delta Lake table. Its Parquet files, its parts, become the table when they are committed.

A prediction is up to date if these conditions hold: the image file still has the same size and modification time, the mask file
exists (and the confidence map, if one is wanted), and the prediction belongs to the current *generation*. A generation is all
predictions made with one version of the model and of this program's prediction code. A new generation begins whenever another
version is used for the same output folder. Predictions in parts that an interrupted run finished count as well, although that run
committed nothing. Each run writes parts of its own, to which it copies the rows that are up to date.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from deconvnet.datasets.image_folder import ImageFile
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import digest
from infra.storage import tables
from infra.storage.guarded import LockGuard

VERSION = 3
"""Version of the prediction code (`OutputState.code_version`).

Raise it when the same images and model would give other predictions, or rows with other columns.
"""
STATE_FILE, TABLE, REJECTS = "predict.json", "predictions", "rejects"
MASKS, OVERLAYS, MAPS, RANKING = "masks", "overlays", "confidence", "ranking"
CLASSES_FILE = "classes.json"
"""File in the output folder with the model's class names by id (`classes`), and whether class 0 is the background."""
_MAX_PART = 32  # largest number of images in a part of the table
_MIN_PARTS = 32  # parts to aim at if there are few images, to keep many workers busy and lose little work when interrupted
_READERS = 16  # number of parts read at once; each read mostly waits for S3
UNREADABLE = "can't be read: "
"""How the reason of a rejected image begins if its file could not be read. A later run tries such an image again."""

PREDICTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # path of the image relative to the input
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # px, with the EXIF orientation applied
        pa.field("height", pa.int32(), nullable=False),
        pa.field("classes", pa.list_(pa.string()), nullable=False),  # predicted classes by id, background included
        pa.field("shares", pa.list_(pa.float32()), nullable=False),  # share of the pixels that has each of `classes`
        # How sure the prediction is, see `uncertainty.Measures`: of the image, and of the pixels of each of `classes`.
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("confidence_before_crf", pa.float32(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("disagreement", pa.float32(), nullable=False),
        pa.field("boundary_doubt", pa.float32()),  # null if there is no boundary
        pa.field("class_confidence", pa.list_(pa.float32()), nullable=False),
        pa.field("class_confidence_before_crf", pa.list_(pa.float32()), nullable=False),
        pa.field("class_entropy", pa.list_(pa.float32()), nullable=False),
        pa.field("class_disagreement", pa.list_(pa.float32()), nullable=False),
        pa.field("class_boundary_doubt", pa.list_(pa.float32()), nullable=False),  # null for a class without a boundary
        pa.field("boxes", pa.int32(), nullable=False),  # number of boxes, windows included, that DeconvNet segmented
        pa.field("fingerprint", pa.string(), nullable=False),  # the image's perceptual hash
        pa.field("mask", pa.string(), nullable=False),  # path relative to the output
        pa.field("confidence_map", pa.string()),  # path relative to the output; null without confidence map
        pa.field("overlay", pa.string()),  # path relative to the output; null without overlay
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),  # text made of the image's size in bytes and modification time
        pa.field("generation", pa.string(), nullable=False),
    ]
)
"""The columns of the table `predictions`, which has one row per predicted image."""


@dataclass(frozen=True, slots=True)
class Task:
    """An image and what a run of batch prediction does with it.

    Attributes:
        image: the image file.
        part: name of the part (Parquet file) of the table `predictions` that already holds an up-to-date row of the image; "" if
            the image must be predicted.
        has_overlay: whether the image will have an overlay when the run ends. An overlay is a copy of the image with the mask
            drawn over it.
        draw_overlay: whether this run draws the overlay.
        has_map: whether the image will have a confidence map when the run ends. Only an image that is predicted gets a new one.
    """

    image: ImageFile
    part: str
    has_overlay: bool
    draw_overlay: bool
    has_map: bool

    @property
    def mask_path(self) -> str:
        """Return the path of the mask, relative to the output folder, such as "masks/cat.png"."""
        return f"{MASKS}/{self.image.stem}.png"

    @property
    def overlay_path(self) -> str:
        """Return the path of the overlay, relative to the output folder, such as "overlays/cat.jpg"."""
        return f"{OVERLAYS}/{self.image.stem}.jpg"

    @property
    def map_path(self) -> str:
        """Return the path of the confidence map, relative to the output folder, such as "confidence/cat.png"."""
        return f"{MAPS}/{self.image.stem}.png"

    @property
    def files(self) -> set[str]:
        """Return the paths of the files that the image will have when the run ends, relative to the output folder."""
        wanted = {self.mask_path: True, self.overlay_path: self.has_overlay, self.map_path: self.has_map}
        return {path for path, is_wanted in wanted.items() if is_wanted}


@dataclass(frozen=True)
class OutputState:
    """A record of the images and the model that an output folder was made from, stored there as `predict.json`.

    Attributes:
        input: folder of the images.
        model: name of the model in MLflow's model registry.
        model_version: version of the registered model.
        model_id: id of this model version. It is unique, even if another registry has a version of the same name and number.
        generation: name of all predictions made with this model version and code version. A new one is drawn if either changes.
        code_version: `VERSION` of the program that made the predictions. Files without it are of version 1.
    """

    input: str
    model: str
    model_version: str
    model_id: str
    generation: str
    code_version: int = 1

    @property
    def comment(self) -> str:
        """Return the comment in the files of masks and overlays. It differs between models even if their masks are equal."""
        return f"models:/{self.model}/{self.model_version}, {self.generation}"


@dataclass(frozen=True)
class Plan:
    """The work of one run of batch prediction.

    Attributes:
        state: the input folder, model version and generation (name of this model version's predictions) of the run.
        key: digest of the images' names and stamps (size and modification time), the generation, the limit of pixels, and whether
            overlays and confidence maps are wanted. If the table was made with the same key, its rows are up to date.
        tasks: one task per image, in order; empty if the table is up to date.
        earlier_files: paths of the masks, overlays and confidence maps of earlier runs, below the output folder; empty if the
            table is up to date.
        earlier_parts: names of all parts of earlier runs, also of interrupted ones; empty if the table is up to date.
        is_complete: whether the table is up to date, so that nothing is left to do.
        rejected: number of images that could not be used and are not tried again; 0 if the table is not up to date.
    """

    state: OutputState
    key: str
    tasks: list[Task]
    earlier_files: frozenset[str]
    earlier_parts: list[str]
    is_complete: bool
    rejected: int = 0

    @property
    def fingerprint(self) -> str:
        """Return the digest under which this run writes its parts: that of the key and of the names of all earlier parts.

        Because of the names it is no earlier run's digest, whose parts would be taken for those of this run.
        """
        return digest([self.key, self.earlier_parts])

    @property
    def units(self) -> list[list[Task]]:
        """Split the tasks into lists, one for each part (Parquet file) of the table.

        A part has at most 32 images. Workers write the parts independently of each other.
        """
        size = min(_MAX_PART, max(1, len(self.tasks) // _MIN_PARTS))
        return [[self.tasks[i] for i in chunk] for chunk in tables.chunks(len(self.tasks), size)]


def read_state(output: str) -> OutputState | None:
    """Read which images and which model an output folder was made from.

    Args:
        output: folder or bucket prefix of the output.

    Returns:
        The content of the output's `predict.json`, or None if this program has not used the folder before.

    Raises:
        UserError: if this program did not write `predict.json`, or if the file does not exist although the subfolders that this
            program writes to already hold files.
    """
    try:
        return OutputState(**storage.read_json(storage.join(output, STATE_FILE)))
    except FileNotFoundError:
        pass
    except (TypeError, ValueError):
        raise UserError(f"{storage.join(output, STATE_FILE)} was not written by this program: name another output") from None
    for folder in (MASKS, OVERLAYS, MAPS, RANKING, TABLE):
        if storage.list_files(storage.join(output, folder)):
            raise UserError(
                f"{storage.join(output, folder)} holds files that this program didn't write, and it would write there: "
                "name another output"
            )
    return None


def make_plan(
    images: Sequence[ImageFile], output: str, state: OutputState, overlays: bool, maps: bool, max_pixels: int | None
) -> Plan:
    """Find out which images of a folder still need a prediction, by comparing them with the predictions in the output folder.

    No file is written. The names and stamps (size and modification time) of the images are compared with the rows of the table
    `predictions`. If nothing else is left to do, images that could not be read are read again; one that can be is left to do.

    Args:
        images: all images of the input folder.
        output: folder or bucket prefix of the output.
        state: the input folder, model version and generation (name of this model version's predictions) of the run.
        overlays: whether every image shall have an overlay, which is a copy of the image with the mask drawn over it.
        maps: whether every image shall have a confidence map. An image without one is predicted again.
        max_pixels: images with more pixels are refused; None for the limit stored with the model.

    Returns:
        The plan. If the table is up to date and all files that are wanted exist, `is_complete` is True and there are no tasks.
    """
    table = storage.join(output, TABLE)
    files = {f"{folder}/{n}" for folder in (MASKS, OVERLAYS, MAPS) for n in storage.list_files(storage.join(output, folder))}
    key = digest([state.generation, overlays, maps, max_pixels, [(i.name, i.stamp, i.refused) for i in images]])
    commit = tables.read_commit(table)
    if commit and commit.extra["key"] == key:
        rejected = {reject.image_id for reject in commit.rejects}
        tasks = [Task(image, "", overlays, overlays, maps) for image in images if image.name not in rejected]
        unread = [storage.join(state.input, r.image_id) for r in commit.rejects if r.reason.startswith(UNREADABLE)]
        if all(task.files <= files for task in tasks) and not _any_can_be_read(unread):
            return Plan(state, key, [], frozenset(), [], is_complete=True, rejected=len(rejected))

    stamps = {image.name: image.stamp for image in images if not image.refused}
    up_to_date: dict[str, tuple[str, bool, bool]] = {}
    earlier_files: set[str] = set()
    parts = tables.part_files(table)
    for part, row in _finished_rows(table, parts):
        # Rows that an earlier version of this program wrote have no column for the map.
        name, confidence_map = row["image_id"], row.get("confidence_map")
        named = {row["mask"], row["overlay"], confidence_map} - {None}
        earlier_files |= named
        allowed = max_pixels is None or row["width"] * row["height"] <= max_pixels
        same = row["generation"] == state.generation and row["stamp"] == stamps.get(name)
        if same and allowed and row["mask"] in files and (confidence_map in files or not maps):
            up_to_date[name] = part, row["overlay"] in files, confidence_map in files
    tasks = []
    for image in images:
        part, drawn, mapped = up_to_date.get(image.name, ("", False, False))
        tasks.append(Task(image, part, overlays or drawn, overlays and not drawn, maps or mapped))
    return Plan(state, key, tasks, frozenset(earlier_files), sorted(parts), is_complete=False)


def _any_can_be_read(uris: Sequence[str]) -> bool:
    """Return whether any of these files can be read. They are read until one can be."""

    def can_be_read(uri: str) -> bool:
        try:
            storage.read_bytes(uri)
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(_READERS) as pool:
        return any(pool.map(can_be_read, uris))  # which cancels the rest as soon as one can be read


def new_generation() -> str:
    """Return a random name for a new generation (the predictions made with one model version): 12 hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def _finished_rows(table: str, parts: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the rows of finished parts (Parquet files).

    Args:
        table: URI of the table `predictions`.
        parts: names of the parts, also of those of runs that were interrupted.

    Yields:
        Pairs of the name of a part and one of its rows. A row is a dict of the columns image_id, stamp (size and
        modification time of the image), generation (name of a model version's predictions), width, height, mask, overlay and, if
        the part has it, confidence_map.
    """
    columns = ["image_id", "stamp", "generation", "width", "height", "mask", "overlay", "confidence_map"]

    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda part: list(tables.iter_rows(table, columns, tables.Part(part, []))), parts)
        for part, rows in zip(parts, read, strict=True):
            yield from ((part, row) for row in rows)


def commit_predictions(plan: Plan, output: str, parts: Sequence[tables.Part], guard: LockGuard) -> tables.Commit:
    """Replace the table `predictions` by the parts (Parquet files) that a run has written.

    First, masks, overlays and confidence maps of earlier runs are deleted if no row names them any more. Then the parts are
    committed.

    Args:
        plan: the plan of the run.
        output: folder or bucket prefix of the output.
        parts: summaries of the table's parts, in order, as `predict_images` returns them.
        guard: checks, before the table is changed, that no other run has taken the lock of the output folder.

    Returns:
        The commit record of the table.

    Raises:
        Interrupted: if another run has taken the lock.
    """
    table = storage.join(output, TABLE)
    named: set[str] = set()
    for part in parts:
        for row in tables.iter_rows(table, ["mask", "overlay", "confidence_map"], part):
            named |= {name for name in row.values() if name}
    for name in sorted(plan.earlier_files - named):
        guard.check()
        storage.remove(storage.join(output, name))
    extra = {"key": plan.key, "input": plan.state.input, "model": f"models:/{plan.state.model}/{plan.state.model_version}"}
    return tables.commit(table, plan.fingerprint, parts, extra, guard.check)


def write_rejects(plan: Plan, output: str, parts: Sequence[tables.Part], guard: LockGuard) -> int:
    """Write the table `rejects`, which lists the images that could not be used, in place of an earlier one.

    Args:
        plan: the plan of the run.
        output: folder or bucket prefix of the output.
        parts: summaries of the parts (Parquet files) of the table `predictions`. Each lists its own rejected images.
        guard: checks, before the table is changed, that no other run has taken the lock of the output folder.

    Returns:
        The number of rejected images.
    """
    names = tables.REJECTS.names
    rows = [{name: getattr(reject, name) for name in names} for part in parts for reject in part.rejects]
    table, fingerprint = storage.join(output, REJECTS), digest(rows)
    part = tables.write_part(table, fingerprint, 0, rows, tables.REJECTS)
    tables.commit(table, fingerprint, [part], {"generation": plan.state.generation}, guard.check)
    return len(rows)
