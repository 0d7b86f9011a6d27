"""Writing the layout: whole or not at all, splits that stay, what is set aside."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.source import Labelled, Source, file_of
from deconvnet.datasets.importing.voc_writer import assign, draw_val, in_order, whole, write_layout
from infra.errors import BadInput, UserError
from infra.storage import read_json
from proposals.image_codec import decode_image, decode_mask


def labelled(broken=""):
    def label():
        if broken:
            raise BadInput(broken)
        mask = np.zeros((20, 30), np.uint8)
        mask[5:9] = 1
        return Labelled(b"photo", ".jpg", mask, mask, overlap=6, hidden=1, passed_over=("shape 1",))

    return label


def source(count=10, broken=()):
    made = Source(("background", "cat"))
    for i in range(count):
        made.add(f"p{i}.jpg", f"/src/p{i}.json", None, labelled(f"it has {i} faults" if i in broken else ""))
    return made


def test_a_photographs_split_never_changes_when_others_come():
    ids = [f"photo_{i}" for i in range(2000)]
    few, many = draw_val(ids[:500], 0.2, 0), draw_val(ids, 0.2, 0)
    assert few == many & set(ids[:500]) and 0.17 < len(many) / 2000 < 0.23
    assert draw_val(ids, 0.2, 1) != many
    assert [len(draw_val(ids[:n], 0.001, 0)) for n in (0, 1, 2, 3)] == [0, 0, 1, 1]
    assert len(draw_val(ids[:3], 0.999, 0)) == 2


def test_splits_by_lists_of_names_and_by_one_list_and_the_rest():
    splits, rejects, notes = assign(source(4), ["p0", "x/p1.jpg", "p9"], ["p1.jpg", "p2"], 0.2, 0)
    assert splits == {"p0": "train", "p1": "val", "p2": "val"} and "1 labelled photographs are in neither" in notes[0]
    assert [(r.image_id, r.reason[:11]) for r in rejects] == [("p1", "listed in b"), ("p9", "listed, and")]
    assert assign(source(3), None, ["p1"], 0.2, 0)[0] == {"p0": "train", "p1": "val", "p2": "train"}
    assert assign(source(3), ["p1"], None, 0.2, 0)[0] == {"p0": "val", "p1": "train", "p2": "val"}


def test_what_is_written(tmp_path):
    given = source(10, broken=(3,))
    splits = {f"p{i}": "val" if i > 7 else "train" for i in range(10)}
    made = write_layout(given, splits, tmp_path, 0.1, 2, {"from": "test"})
    assert (tmp_path / "ImageSets/Segmentation/train.txt").read_text().split() == ["p0", "p1", "p2", "p4", "p5", "p6", "p7"]
    assert (tmp_path / "ImageSets/Segmentation/val.txt").read_text() == "p8\np9\n"
    assert len((tmp_path / "ImageSets/Segmentation/trainval.txt").read_text().split()) == 9
    assert (tmp_path / "classes.txt").read_text() == "background\ncat\n"
    assert (tmp_path / "JPEGImages/p0.jpg").read_bytes() == b"photo"
    picture = Image.open(tmp_path / "SegmentationClass/p0.png")
    assert picture.mode == "P" and picture.getpalette()[3:6] == [128, 0, 0]
    assert decode_mask((tmp_path / "SegmentationObject/p0.png").read_bytes()).sum() == 120
    rows = list(csv.reader((tmp_path / "rejects.csv").open()))
    assert rows[1] == ["photograph", "p3", "/src/p3.json", "it has 3 faults"] and len(rows) == 11
    assert (made.overlapping, made.hidden, made.overlap) == (9, 9, 6 / 600)
    assert read_json(str(tmp_path / "import.json"))["photographs"] == {"train": 7, "val": 2}


def test_too_many_rejects_stop_the_import_and_say_why(tmp_path):
    splits = dict.fromkeys((f"p{i}" for i in range(10)), "train") | {"p9": "val"}
    words = r"2 of 10 photographs can't be used \(2× it has 3 faults; the first is /src/p3.json\), and max_rejects allows 10%"
    with pytest.raises(UserError, match=words):
        write_layout(source(10, broken=(3, 5)), splits, tmp_path, 0.1, 1, {})


def test_a_split_that_is_left_with_nothing_stops_the_import(tmp_path):
    splits = dict.fromkeys((f"p{i}" for i in range(10)), "train") | {"p9": "val"}
    with pytest.raises(UserError, match="val has 0 photographs, and at least 1"):
        write_layout(source(10, broken=(9,)), splits, tmp_path, 0.5, 1, {})


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), whole(folder) as aside:
        (aside / "half").write_text("")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".new.importing").mkdir()  # what a killed import left
    (tmp_path / ".new.importing/old").write_text("")
    folder.mkdir()
    with whole(folder) as aside:
        (aside / "made").write_text("")
        assert not list(folder.iterdir())
    assert [p.name for p in folder.iterdir()] == ["made"] and [p.name for p in tmp_path.iterdir()] == ["new"]
    with pytest.raises(UserError, match="is there and not empty"), whole(folder):
        pass
    assert [p.name for p in folder.iterdir()] == ["made"]


def test_photographs_of_other_kinds_become_png(rng):
    picture = rng.integers(0, 255, (20, 30, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "BMP")
    data, suffix = file_of(sink.getvalue(), "a.BMP")
    assert suffix == ".png" and np.array_equal(decode_image(data), picture)
    assert file_of(b"as it is", "a.JPEG") == (b"as it is", ".jpeg")


@pytest.mark.parametrize("name", [" a.jpg", "a\n.jpg", "a .jpg"])
def test_names_that_a_list_can_not_hold_are_set_aside(name):
    made = Source(("background", "cat"))
    made.add(name, "f", None, labelled())
    assert not made.entries and len(made.rejects) == 1


def test_work_comes_back_in_order():
    assert list(in_order(lambda i: i * i, range(300), 3)) == [i * i for i in range(300)]
