"""train_pipeline.py on data that change: what is read and written again, the versions kept, and training on an earlier one."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from deconvnet.datasets import voc
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.datasets.synthetic import write_dataset
from infra.errors import BadInput
from infra.runtime.stages import digest
from infra.storage import tables
from proposals import job as proposals_job
from proposals.mining import job as mining_job
from tests.workflows.commands import LOCAL, TINY, Done, call
from tests.workflows.doubles import training_gives
from workflows import train_pipeline
from workflows.pipelines.data import DataPipeline
from workflows.pipelines.workspace import STAGE_OF_TABLE, Workspace
from workflows.settings import Settings

FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject")


class Runs:
    """A data folder of 40 images, and a workspace in which the pipeline was run on them."""

    def __init__(self, place: Path) -> None:
        self.data, self.more, self.workspace = place / "data", place / "more", place / "w"

    def __call__(self, *more: str, classes: str = ",".join(GENERATED_CLASSES)) -> Done:
        fixed = ["--data.root", str(self.data), "--data.classes", classes, "--tracking.enabled", "false"]
        with training_gives(0.5):
            return call(train_pipeline.main, *TINY, *LOCAL, *fixed, "--workspace", str(self.workspace), *more)

    def add_images(self) -> None:
        """Add five images to train."""
        shutil.copytree(self.more, self.data, dirs_exist_ok=True, copy_function=copy_new)

    def parts(self, name: str) -> list[str]:
        """The parts of the workspace's version of a table."""
        return [part.name for part in tables.require_commit(Workspace(str(self.workspace)).table(name)).parts]


def copy_new(source: str, target: str) -> None:
    """Copy a file unless there is one of this name, other than the list of train."""
    if not Path(target).exists() or target.endswith("/train.txt"):
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The state after the first run."""
    made = Runs(tmp_path_factory.mktemp("versions"))
    write_dataset(str(made.data), 0, 35, 5, 48, 64)
    write_dataset(str(made.more), 0, 40, 5, 48, 64)
    done = made()
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture
def runs(first: Runs, tmp_path: Path) -> Runs:
    """The same, in a folder of the test's own."""
    shutil.copytree(first.data.parent, tmp_path / "copy")
    return Runs(tmp_path / "copy")


def test_only_new_images_are_read_searched_and_cut(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read, searched = {name: runs.parts(name) for name in STAGE_OF_TABLE}, [], []
    runs.add_images()
    row, boxes, unusable = voc.read_row, proposals_job.find_boxes, iter([True])

    def decode_masks(row: dict[str, Any]) -> Any:
        if next(unusable, False):
            raise BadInput("unusable")
        return decode(row)

    decode = mining_job._decode_masks
    monkeypatch.setattr(mining_job, "_decode_masks", decode_masks)
    monkeypatch.setattr(voc, "read_row", lambda root, files, *more: read.append(files.image_id) or row(root, files, *more))
    monkeypatch.setattr(proposals_job, "find_boxes", lambda image, options: searched.append(image) or boxes(image, options))
    done = runs()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read) == len(searched) == 5 and "images@1: " in done.stdout
    for name in STAGE_OF_TABLE:
        now = runs.parts(name)
        assert now[:2] == before[name] and len(now) == 3, name
        assert tables.kept_versions(str(runs.workspace / name)) == [1], "nothing uses the version before"
    assert [row["reason"] for row in tables.iter_rows(str(runs.workspace / "rejects"))] == ["unusable"]


def test_in_a_part_with_a_changed_image_only_this_image_is_searched_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = voc.read_split(str(runs.data), "train")
    shutil.copy(runs.data / f"JPEGImages/{first}.jpg", runs.data / f"JPEGImages/{second}.jpg")
    searched, boxes = [], proposals_job.find_boxes
    monkeypatch.setattr(proposals_job, "find_boxes", lambda image, options: searched.append(image) or boxes(image, options))
    done = runs()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(searched) == 1


class Measuring(DataPipeline):
    """A pipeline that remembers which parts of the table `proposals` it leaves out of its measurements."""

    def __init__(self, root: str) -> None:
        Workspace.__init__(self, root)
        self.settings, self.left_out = Settings(), []
        self.executor: Any = None

    def measure_proposals(self, split: str, report: str = "", known: Collection[str] = ()) -> None:
        """Remember the parts."""
        self.left_out.append(set(known))


def test_boxes_whose_run_was_killed_before_they_were_measured_are_measured_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tables.Commit] = []

    def make(images: str, table: str, settings: Any, fingerprint: str, *_: object, **__: object) -> tables.Commit:
        row, reject = {"image_id": fingerprint}, tables.Reject(fingerprint, "", "proposals", "unusable")
        part = tables.write_part(table, "c0de" * 16, digest(row), [row, reject], pa.schema([pa.field("image_id", pa.string())]))
        made.append(tables.commit(table, fingerprint, [part], keep_earlier=True))
        return made[-1]

    monkeypatch.setattr(proposals_job, "make_proposals", make)
    pipeline = Measuring(str(tmp_path))
    for fingerprint in ("first", "first", "second"):  # no stage has a record, as if each run were killed
        pipeline._proposals(fingerprint)
    assert pipeline.left_out == [set(), set(), {part.name for part in made[0].parts}]
    assert [row["image_id"] for row in tables.iter_rows(f"{tmp_path}/rejects")] == ["second"], "of the newest version"


def test_rejects_are_those_of_all_tables_in_order_and_each_once(tmp_path: Path) -> None:
    shared = tables.Reject("s", "", "any", "unusable")
    for number, table in enumerate(reversed(STAGE_OF_TABLE)):
        rejects = [tables.Reject(f"{number}", "", table, "unusable"), shared]
        part = tables.write_part(f"{tmp_path}/{table}", "c0de" * 16, 0, rejects, pa.schema([pa.field("image_id", pa.string())]))
        tables.commit(f"{tmp_path}/{table}", "c0de" * 16, [part])
    Workspace(str(tmp_path)).write_rejects()
    found = [(row["image_id"], row["stage"]) for row in tables.iter_rows(f"{tmp_path}/rejects")]
    assert found == [*((f"{number}", table) for number, table in enumerate(reversed(STAGE_OF_TABLE))), ("s", "any")]


def test_an_earlier_version_is_trained_on_as_long_as_it_is_kept(runs: Runs) -> None:
    images, before = str(runs.workspace / "images"), runs.parts("examples/stage2")
    runs.add_images()
    done = runs("--data.version", "0", "--train.stage2.lr", "0.02")
    assert done.returncode == 0 and "images@0: 28 train" in done.stdout, done.stdout + done.stderr
    assert "proposals: complete, not run again" in done.stdout, "the images have the same content key"
    new = runs()
    assert new.returncode == 0 and "images@1: " in new.stdout and tables.kept_versions(images) == [1]
    gone = runs("--data.version", "0")
    assert gone.returncode == 2 and "data.version 0 is not a version of" in gone.stderr and "versions are 1" in gone.stderr
    assert before == runs.parts("examples/stage2")[:2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data.version", "7"), "data.version 7 is not a version of"),
        (("--data.version", "-1"), "data.version"),
        (("--data.version", "x"), "data.version"),
    ],
)
def test_an_impossible_version_is_refused(runs: Runs, options: tuple[str, ...], said: str) -> None:
    done = runs(*options, "--dry-run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_version_of_other_classes_or_another_background_is_refused(runs: Runs) -> None:
    done = runs("--data.version", "0", classes="background,one,two")
    assert done.returncode == 2 and "was made with another data.classes: set it to background," in done.stderr
    assert ",".join(GENERATED_CLASSES) in done.stderr
    done = runs("--data.version", "0", "--data.background", "none")
    assert done.returncode == 2 and "was made with another data.background: set it to first," in done.stderr


def test_a_workspace_without_tables_has_no_version(tmp_path: Path) -> None:
    done = Runs(tmp_path)("--data.version", "0")
    assert done.returncode == 2 and "there is no such table" in done.stderr
