"""predict.py --rank: which images to label next, with a contact sheet."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconvnet.ranking.selection import MEASURES, most_uncertain_class, uncertainty_scores
from infra import storage
from proposals.image_codec import encode_mask
from tests.deconvnet.ensembles import CLASSES
from tests.workflows.commands import LOCAL, Done, call
from tests.workflows.predict.predicting import arguments, rows, write_images
from workflows import predict
from workflows.operations import ranking

pytestmark = pytest.mark.xdist_group("predict")
SHEET_COLOUR = (230, 0, 230)
"""The outline of doubtful regions."""


@pytest.fixture(scope="session")
def predicted(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, of which two show nearly the same, in `in`, and their predictions and confidence maps in `out`."""
    folder = tmp_path_factory.mktemp("ranking")
    write_images(folder / "in")
    Image.open(folder / "in/thin.bmp").resize((30, 100)).save(folder / "in/nested/thin copy.jpg")
    done = call(predict.main, *arguments(workspace, folder / "in", folder / "out", *LOCAL, "--confidence", "maps"))
    assert done.returncode == 0, done.stderr
    return folder


@dataclass
class Ranked:
    """Predicted images, and a copy of the predictions in which the command chooses images."""

    workspace: Path
    images: Path
    out: Path

    def __call__(self, number: int, *more: str) -> Done:
        given = arguments(self.workspace, self.images, self.out, *LOCAL, "--confidence", "maps", "--rank", str(number))
        return call(predict.main, *given, *more)

    def chosen(self) -> pd.DataFrame:
        """The table of the images that were chosen."""
        return pd.read_parquet(self.out / "ranking/images.parquet")

    def files(self) -> dict[str, bytes]:
        """The files of the ranking."""
        return {path.name: path.read_bytes() for path in (self.out / "ranking").iterdir()}


@pytest.fixture
def ranked(workspace: Path, predicted: Path, tmp_path: Path) -> Ranked:
    return Ranked(workspace, predicted / "in", shutil.copytree(predicted / "out", tmp_path / "out"))


@pytest.fixture
def labelled(predicted: Path, tmp_path: Path) -> Path:
    """A data set with a copy of an image under another name, and what is no image of it: a mask, and a damaged file."""
    folder = tmp_path / "labelled"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    shutil.copy(predicted / "in/nested/grey.png", folder / "JPEGImages/other name.png")
    shutil.copy(predicted / "in/thin.bmp", folder / "SegmentationClass/thin.png")
    (folder / "JPEGImages/broken.jpg").write_bytes(b"text")
    return folder


def test_images_to_label_are_listed_with_a_contact_sheet(ranked: Ranked, labelled: Path) -> None:
    options = ("--rank_labelled", str(labelled), "--rank_class_share", "1")
    done = ranked(3, *options)
    assert f"to label     {ranked.out}/ranking (3 images: images.txt, .csv, .parquet and .png)" in done.stdout
    assert "near-duplicates were passed over (also of 1 labelled images)" in done.stdout
    assert "1 labelled images can't be read, so near-duplicates of them are not found: broken.jpg" in done.stdout
    chosen, everything = ranked.chosen(), rows(ranked.out)
    assert chosen["place"].tolist() == [1, 2, 3] and chosen["score"].is_monotonic_decreasing
    left = set(everything) - set(chosen["image_id"]) - {"nested/grey.png"}
    assert "nested/grey.png" not in set(chosen["image_id"]) and len(left) == 2
    assert len(set(chosen["image_id"]) & {"thin.bmp", "nested/thin copy.jpg"}) <= 1
    measures = np.array([[row[name] or 0 for name in MEASURES] for _, row in sorted(everything.items())])
    scores = dict(zip(sorted(everything), uncertainty_scores(measures), strict=True))
    for row in chosen.to_dict("records"):
        assert row["score"] == pytest.approx(scores[row["image_id"]]) and row["path"] == str(ranked.images / row["image_id"])
        assert row["class"] == most_uncertain_class(everything[row["image_id"]], "background")
        assert row["confidence_map"] == everything[row["image_id"]]["confidence_map"]
    assert (ranked.out / "ranking/images.txt").read_text().splitlines() == chosen["path"].tolist()
    assert pd.read_csv(ranked.out / "ranking/images.csv")["image_id"].tolist() == chosen["image_id"].tolist()
    sheet = np.asarray(Image.open(ranked.out / "ranking/images.png").convert("RGB"))
    assert sheet.shape[1] == 1200 and (sheet == SHEET_COLOUR).all(axis=2).sum() > 100, "doubtful regions have an outline"

    first = ranked.files()
    assert "nothing to do" in ranked(3, *options).stdout and ranked.files() == first


def test_fewer_images_than_wanted_are_chosen_if_there_are_no_others(ranked: Ranked) -> None:
    said = ranked(50, "--rank_min_distance", "0", "--rank_class_share", "0.01").stdout
    assert "6 images" in said and "0 near-duplicates" in said and "only 6 of 50 images could be chosen" in said
    assert re.search(r"[1-9] images are above the quota of their class, because no others were left", said)

    said = ranked(2, "--rank_labelled", str(ranked.images)).stdout
    assert "(0 images: " in said and "6 near-duplicates were passed over (also of 7 labelled images)" in said
    assert (ranked.out / "ranking/images.txt").read_text() == "" and pd.read_csv(ranked.out / "ranking/images.csv").empty
    assert not (ranked.out / "ranking/images.png").exists(), "it would show images that were chosen before"


def test_the_contact_sheet_leaves_out_what_can_not_be_drawn(ranked: Ranked) -> None:
    ranked(2)
    first, second = ranked.chosen()[["mask", "confidence_map"]].to_dict("records")
    ids = np.array(Image.open(ranked.out / first["mask"]))
    for name, content in {
        first["mask"]: encode_mask(np.where(ids == ids.max(), 77, ids).astype(np.uint8)),  # a label that no class has
        second["mask"]: b"text",
        second["confidence_map"]: encode_mask(np.zeros((5, 7), np.uint8)),
    }.items():
        whole = (ranked.out / name).read_bytes()
        (ranked.out / name).write_bytes(content)
        assert "images.png leaves out" in ranked(2).stdout and (ranked.out / "ranking/images.png").exists()
        (ranked.out / name).write_bytes(whole)


def test_in_data_without_a_background_any_class_may_be_doubtful_and_regions_of_low_confidence_are(
    ranked: Ranked, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ranked.out / "classes.json").write_text(json.dumps({"classes": CLASSES, "background": False}))
    drawn: list[Any] = []
    monkeypatch.setattr(ranking, "draw_contact_sheet", lambda *given: drawn.extend(given) or b"")
    monkeypatch.setattr(ranking, "_MAX_DRAWN", 2)
    ranked(3)
    cells, classes, title, background = drawn
    assert classes == list(CLASSES) and background is False
    assert title == "3 images to label, the least sure first: 2 of them"
    everything, chosen = rows(ranked.out), ranked.chosen()
    for cell, confidences in zip(cells, chosen["confidence_map"][:2], strict=True):
        unsure = np.asarray(Image.open(ranked.out / confidences)) < 255 * ranking.DOUBT
        np.testing.assert_array_equal(cell.doubtful, unsure)
        assert unsure.any() and not unsure.all()
    assert [most_uncertain_class(everything[each], None) for each in chosen["image_id"]] == chosen["class"].tolist()


def test_a_folder_or_an_image_that_is_gone_is_a_user_error(ranked: Ranked, tmp_path: Path, monkeypatch) -> None:
    done = ranked(2, "--rank_labelled", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "nowhere does not exist" in done.stderr
    ranked(2)
    first, read = (ranked.out / "ranking/images.txt").read_text().splitlines()[0], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read(f"{uri} is gone" if uri == first else uri))
    done = ranked(2)
    assert done.returncode == 2 and "was changed or removed after it was predicted: run predict.py again" in done.stderr
