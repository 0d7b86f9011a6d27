"""The jobs that make the proposals and examples tables."""

import zlib

import cv2
import numpy as np
import pytest

from deconvnet.training.data.examples import open_examples
from infra.errors import UserError
from infra.runtime.stages import digest
from infra.storage import tables
from proposals import edge_boxes, schemas
from proposals import job as proposals_job
from proposals.edgebox import EdgeBoxOptions
from proposals.image_codec import decode_image, decode_mask, encode_mask
from proposals.image_notes import note_of_row
from proposals.job import iter_proposals, make_proposals, proposals_row
from proposals.mining import job as mining_job
from proposals.mining.job import mine_examples
from proposals.mining.rules import rarest
from proposals.settings import ExampleSettings, ProposalSettings
from tests.image_tables import image_row, write_images

SEARCH = ProposalSettings(max_boxes=300, min_box_area=100)


def content(uri: str) -> list:
    return list(tables.iter_rows(uri))


def crops(uri: str) -> list:
    """The rows of a table of crops, each with its rarest class and how often it is repeated."""
    repeats = {int(c): n for c, n in tables.require_commit(uri).extra["repeats_by_class"].items()}
    rarest_class = [(row, rarest(row["class_ids"], repeats)) for row in content(uri)]
    return [{**row, "class_id": class_id, "repeats": repeats[class_id]} for row, class_id in rarest_class]


def test_tables_do_not_depend_on_the_number_of_parts(executor, images, rows, tmp_path):
    made = {}
    for parts in (1, 5):
        images_uri, found = images(rows, parts), str(tmp_path / f"proposals-{parts}")
        proposals = make_proposals(images_uri, found, SEARCH, "p" * 16, executor)
        assert len(proposals.parts) == parts and proposals.rows == len(rows) and not proposals.rejects
        made[parts] = [content(found)]
        for stage in (1, 2):
            out = str(tmp_path / f"stage{stage}-{parts}")
            settings = ExampleSettings(max_per_image=9)
            commit = mine_examples(stage, images_uri, found, out, settings, 64, seed=3, fingerprint="e" * 16, executor=executor)
            assert commit.extra["size"] == 71 and tables.read_commit(out) == commit
            made[parts] += [content(out), commit.extra]
    assert made[1] == made[5]


def test_proposals_are_those_of_edge_boxes(executor, images, rows, tmp_path):
    uri = str(tmp_path / "proposals")
    commit = make_proposals(images(rows, 2), uri, SEARCH, "p" * 16, executor)
    found = {image_id: (boxes, scores) for part in commit.parts for image_id, boxes, scores in iter_proposals(uri, part)}
    assert list(found) == [r["image_id"] for r in rows]
    for r in rows:
        boxes, scores = edge_boxes(decode_image(r["image"]), **SEARCH.edge_box)
        np.testing.assert_array_equal(found[r["image_id"]][0], boxes)
        np.testing.assert_array_equal(found[r["image_id"]][1], scores)
    assert found["102-dot"][0].shape == (0, 4) and len(found["000"][0]) > 20


def test_stage_1_examples(executor, images, rows, tmp_path):
    out = str(tmp_path / "stage1")
    commit = mine_examples(1, images(rows, 3), None, out, ExampleSettings(), 64, fingerprint="e" * 16, executor=executor)
    made = crops(out)
    train = [r["image_id"] for r in rows if r["split"] == "train" and r["image_id"].isdigit()]
    assert [m["image_id"] for m in made] == [i for i in train for _ in (1, 2)]
    assert [(m["image_id"], m["box"]) for m in made] == sorted((m["image_id"], m["box"]) for m in made)
    for m in made:
        image, mask = decode_image(m["image"]), decode_mask(m["mask"])
        assert image.shape == (71, 71, 3) and mask.shape == (71, 71)
        assert {*np.unique(mask)} <= {0, 255, m["class_id"]}
        own = image[mask == m["class_id"]].mean(axis=0)
        assert np.abs(own - ((200, 40, 40) if m["class_id"] == 1 else (40, 60, 220))).max() < 12
        assert m["stage"] == 1 and m["iou"] == 1 and m["repeats"] == 1
    assert commit.extra["examples_by_class"] == {"1": len(train), "2": len(train)}


def test_stage_2_examples_and_their_balance(executor, images, rows, tmp_path):
    images_uri, found, out = images(rows, 3), str(tmp_path / "p"), str(tmp_path / "stage2")
    make_proposals(images_uri, found, SEARCH, "p" * 16, executor)
    commit = mine_examples(2, images_uri, found, out, ExampleSettings(), 64, fingerprint="e" * 16, executor=executor)
    made = crops(out)
    counts = {c: sum(m["class_id"] == c for m in made) for c in (1, 2)}
    assert commit.extra["examples_by_class"] == {str(c): n for c, n in counts.items()}
    repeats = {c: min(int(max(counts.values()) / n + 0.5), 10) for c, n in counts.items()}
    assert all(m["repeats"] == repeats[m["class_id"]] for m in made)
    assert commit.extra["seen_by_class"] == {str(c): counts[c] * repeats[c] for c in counts}
    assert open_examples(out, 64).total == sum(m["repeats"] for m in made)
    assert all(0.5 <= m["iou"] <= 1 and m["stage"] == 2 for m in made)
    assert any({1, 2} <= {*np.unique(decode_mask(m["mask"]))} for m in made), "no crop shows both classes"


ANOTHER = {
    "context": 1.5,
    "window": "stretched",
    "min_iou": 0.7,
    "min_object_side": 38,
    "max_per_image": 3,
    "balance": False,
    "max_repeats": 1,
    "jpeg_quality": 60,
}


@pytest.mark.parametrize("stage", [1, 2])
def test_crops_made_with_any_other_option_are_not_those_that_the_folder_has(executor, images, rows, tmp_path, stage):
    """Four objects of class 1, one of class 2, one of the background. Only what concerns boxes has no effect in stage 1."""
    assert set(ANOTHER) == set(ExampleSettings.model_fields)
    few = [row for row in rows if row["image_id"].isdigit()][:3]
    for class_id, row in zip((1, 0), few[1:], strict=True):  # that of object 2
        row["class_mask"] = encode_mask(np.array([0, 1, class_id, *[0] * 252, 255], np.uint8)[decode_mask(row["object_mask"])])
    images_uri, found, out, made = images(few, 1), str(tmp_path / "p"), str(tmp_path / "out"), {}
    usual = {"settings": ExampleSettings(max_per_image=9), "input_size": 64, "windows": ((1.0, 0.5), 0.5), "seed": 0}
    others = {name: {"settings": usual["settings"].model_copy(update={name: value})} for name, value in ANOTHER.items()}
    others |= {"input_size": {"input_size": 80}, "seed": {"seed": 1}, "background": {"background": False}}
    others |= {"sizes": {"windows": ((1.0, 0.4), 0.5)}, "overlap": {"windows": ((1.0, 0.5), 0.9)}, "proposals": {}}
    for name, changes in [("", {}), *others.items()]:
        search = SEARCH.model_copy(update={"max_boxes": 99} if name == "proposals" else {})
        make_proposals(images_uri, found, search, name, executor)
        mine_examples(stage, images_uri, found, out, **usual | changes, fingerprint=name, executor=executor)
        made[name] = crops(out)
    same = {name for name in others if made[name] == made[""]}
    assert same == ({"min_iou", "max_per_image", "seed", "sizes", "overlap", "proposals"} if stage == 1 else set())


def test_boxes_made_with_any_other_option_or_edge_model_are_not_those_that_the_folder_has(
    executor, images, rows, tmp_path, monkeypatch
):
    """The search is replaced by one that returns a number for its options and for what the edge model's file holds."""
    images_uri, found, model, made = images(rows[:1], 1), str(tmp_path / "p"), tmp_path / "model", []
    model.write_bytes(b"forest")

    def find(image: np.ndarray, options: EdgeBoxOptions) -> tuple[np.ndarray, np.ndarray]:
        number = zlib.crc32(repr(options).encode() + model.read_bytes()) % 2**24
        return np.array([[0, 0, 1, number]], np.float32), np.ones(1, np.float32)

    monkeypatch.setattr(proposals_job, "find_boxes", find)
    monkeypatch.setattr(proposals_job, "load_forest", lambda uri: None)
    usual = ProposalSettings(edge_model=str(model))
    values = {name: value for name, value in usual.edge_box.items() if not isinstance(value, str)}
    others = [{name: not value if value is False else type(value)(value / 2)} for name, value in values.items()]
    others += [{"edges": "gradient", "edge_model": None}, {"edge_model": str(tmp_path / "copy")}, {"kind": "windows"}, {}]
    (tmp_path / "copy").write_bytes(b"copy")
    for changes in ({}, *others):
        if made and not changes:
            model.write_bytes(b"another forest")
        make_proposals(images_uri, found, usual.model_copy(update=changes), "p" * 16, executor)
        made.append(str(content(found)[0]["boxes"]))
    assert len(set(made)) == len(made) == len(values) + 5


def test_dev_examples_are_not_repeated(executor, images, rows, tmp_path):
    """Two objects of class 1 in one image, classes 1 and 2 in the other: in train, class 2 is repeated."""
    image = np.zeros((40, 80, 3), np.uint8)
    objects = np.repeat(np.array([[0, 1, 2, 0]], np.uint8), 40, axis=0).repeat(20, axis=1)
    rows = [image_row("000", image, (objects > 0).astype(np.uint8), objects, s) for s in ("train", "dev")]
    rows += [image_row("001", image, objects, objects, s) for s in ("train", "dev")]
    uri = images(rows, 1)
    seen = {}
    for name, split, settings in [
        ("train", "train", ExampleSettings()),
        ("unbalanced", "train", ExampleSettings(balance=False)),
        ("dev", "dev", ExampleSettings()),
    ]:
        mine_examples(1, uri, None, str(tmp_path / name), settings, 64, split=split, fingerprint="d" * 16, executor=executor)
        seen[name] = [(m["class_id"], m["repeats"]) for m in crops(str(tmp_path / name))]
    assert seen["train"] == [(1, 1), (1, 1), (1, 1), (2, 3)]
    assert seen["dev"] == seen["unbalanced"] == [(1, 1), (1, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("stage", [1, 2])
def test_no_example_at_all_is_a_user_error(executor, images, rows, tmp_path, stage):
    images_uri, found = images(rows[8:12], 1), str(tmp_path / "p")
    make_proposals(images_uri, found, SEARCH, "p" * 16, executor)
    with pytest.raises(UserError, match=r"no (stage-2 )?training example.*min_object_side"):
        mine_examples(
            stage, images_uri, found, str(tmp_path / "out"), ExampleSettings(), 64, fingerprint="e" * 16, executor=executor
        )
    assert tables.read_commit(str(tmp_path / "out")) is None


def test_damaged_rows_are_rejected_with_a_reason(executor, images, rows, tmp_path):
    rows[0]["image"] = rows[0]["image"][:100]
    rows[1]["class_mask"] = b"not a mask"
    rows[2]["object_mask"] = rows[8]["object_mask"]
    images_uri = images(rows, 2)
    proposals = make_proposals(images_uri, str(tmp_path / "p"), SEARCH, "p" * 16, executor)
    assert [r.image_id for r in proposals.rejects] == ["000"] and proposals.rows == len(rows) - 1
    examples = mine_examples(
        1, images_uri, None, str(tmp_path / "out"), ExampleSettings(), 64, fingerprint="e" * 16, executor=executor
    )
    assert [r.image_id for r in examples.rejects] == ["000", "001", "002"]
    assert "mask 120×90, object mask 50×40" in examples.rejects[2].reason
    assert not {"000", "001", "002"} & {m["image_id"] for m in content(str(tmp_path / "out"))}


def test_an_image_on_which_opencv_fails_is_rejected(monkeypatch, rows):
    def broken(*_, **__):
        cv2.cvtColor(np.zeros((0, 0, 3), np.uint8), cv2.COLOR_RGB2LAB)

    monkeypatch.setattr("proposals.job.find_boxes", broken)
    found = proposals_row(rows[0], EdgeBoxOptions())
    assert (
        isinstance(found, tables.Reject) and "EdgeBox" in found.reason and "cvtColor" in found.reason and "\n" not in found.reason
    )


def test_a_missing_edge_model_is_a_user_error_before_any_work(executor, images, rows, tmp_path):
    with pytest.raises(UserError, match=r"gone\.yml"):
        make_proposals(
            images(rows, 1), str(tmp_path / "p"), ProposalSettings(edge_model=str(tmp_path / "gone.yml")), "p" * 16, executor
        )


def test_crops_of_real_images_have_the_classes_of_voc(executor, images, voc_rows, tmp_path):
    uri, found = images(voc_rows[:2], 2), str(tmp_path / "p")
    make_proposals(uri, found, ProposalSettings(), "p" * 16, executor)
    easy = mine_examples(1, uri, None, str(tmp_path / "1"), ExampleSettings(), 64, fingerprint="e" * 16, executor=executor)
    hard = mine_examples(
        2, uri, found, str(tmp_path / "2"), ExampleSettings(max_per_image=30), 64, fingerprint="e" * 16, executor=executor
    )
    assert easy.rows >= 2 and hard.rows >= 15
    for row in content(str(tmp_path / "2")):
        assert set(np.unique(decode_mask(row["mask"])).tolist()) <= {*range(21), 255}


def test_only_new_and_changed_images_are_searched_and_only_their_parts_are_made_again(executor, rows, tmp_path, monkeypatch):
    """Of four parts, the first has a changed image, the second a relabelled one, the third loses one, and one part is new."""
    pieces = [rows[0:3], rows[3:6], rows[6:8]]
    found, out, images_uri = (str(tmp_path / name) for name in ("proposals", "stage2", "images"))
    settings, searched, cut = ExampleSettings(max_per_image=9), [], []

    def make(pieces: list, previous: int | None = None) -> dict[str, tables.Commit]:
        parts = [
            tables.write_part(images_uri, "i" * 16, digest(repr(piece)), [*piece, *map(note_of_row, piece)], schemas.IMAGES)
            for piece in pieces
        ]
        images = tables.commit(images_uri, "i" * 16, parts, keep_earlier=True)
        now = tables.at_version(images_uri, images.version)
        before = None if previous is None else tables.at_version(images_uri, previous)
        boxes = make_proposals(now, found, SEARCH, "p" * 16, executor, previous=before)
        of = tables.at_version(found, boxes.version)
        mined = mine_examples(2, now, of, out, settings, 64, fingerprint="e" * 16, executor=executor)
        return {"images": images, "proposals": boxes, "examples": mined}

    real, real_cut = proposals_job.find_boxes, mining_job.cut_example
    first = make(pieces)
    monkeypatch.setattr(proposals_job, "find_boxes", lambda image, options: searched.append(image) or real(image, options))
    monkeypatch.setattr(mining_job, "cut_example", lambda *given: cut.append(given[0]) or real_cut(*given))
    assert make(pieces) == first and not searched and not cut, "nothing is new"
    other = rows[12]
    changed = {**other, "image_id": "001", "split": "train"}
    relabelled = {**rows[4], "class_mask": other["class_mask"], "object_mask": other["object_mask"]}
    now = [[rows[0], changed, rows[2]], [rows[3], relabelled, rows[5]], rows[7:8], rows[8:10]]
    made = make(now, first["images"].version)
    assert len(searched) == 3, "the changed image and those of the new part; the others' rows are copied"
    known = {name: {part.name for part in commit.parts} for name, commit in first.items()}
    same = {name: [part.name in known[name] for part in commit.parts] for name, commit in made.items()}
    assert same == {name: [False, name == "proposals", False, False] for name in made}, "boxes do not depend on the masks"
    for name, uri in (("proposals", found), ("examples", out)):
        again = str(tmp_path / f"again {name}")
        now_uri, of = (tables.at_version(u, made[n].version) for u, n in ((images_uri, "images"), (found, "proposals")))
        if name == "proposals":
            make_proposals(now_uri, again, SEARCH, "p" * 16, executor)
        else:
            mine_examples(2, now_uri, of, again, settings, 64, fingerprint="e" * 16, executor=executor)
            assert crops(again) == crops(uri)
        assert content(again) == content(uri), name
    images_uri_1 = tables.at_version(images_uri, first["images"].version)
    searched.clear()
    make_proposals(images_uri_1, found, SEARCH, "p" * 16, executor)
    assert not searched and [row["image_id"] for row in content(found)] == [row["image_id"] for row in rows[:8]], "an old version"


def test_repeats_follow_the_counts_of_all_parts_though_parts_are_not_made_again(executor, images, rows, tmp_path):
    """A later version has more objects of class 2, so those of class 1 become the rarer ones."""
    image = np.zeros((40, 80, 3), np.uint8)
    objects = np.repeat(np.array([[0, 1, 2, 0]], np.uint8), 40, axis=0).repeat(20, axis=1)
    of_class = [np.where(objects > 0, class_id, 0).astype(np.uint8) for class_id in (1, 2)]
    out, seen = str(tmp_path / "out"), {}
    both = [image_row("000", image, objects, objects)]
    for name, more in (("fair", []), ("many", [image_row(f"00{i}", image, of_class[1], objects) for i in (1, 2)])):
        write_images(uri := str(tmp_path / name), [*both, *more], 1 + len(more))
        commit = mine_examples(1, uri, None, out, ExampleSettings(), 64, fingerprint="d" * 16, executor=executor)
        seen[name] = commit.parts[0], commit.extra["repeats_by_class"], open_examples(out, 64).total
    assert seen["fair"][0] == seen["many"][0], "the part is the same file"
    assert [found[1:] for found in seen.values()] == [({"1": 1, "2": 1}, 2), ({"1": 5, "2": 1}, 10)]


def test_windows_are_cut_in_stage_2_beside_the_proposals_and_balanced_by_their_rarest_class(executor, images, rows, tmp_path):
    images_uri, found = images(rows, 2), str(tmp_path / "proposals")
    make_proposals(images_uri, found, SEARCH, "p" * 16, executor)
    made, extra = {}, {}
    for name, sizes in (("boxes", ()), ("both", (1.0, 0.5))):
        out = str(tmp_path / name)
        options = {"fingerprint": "e" * 16, "executor": executor, "windows": (sizes, 0.5)}
        extra[name] = mine_examples(2, images_uri, found, out, ExampleSettings(), 64, **options).extra
        made[name] = crops(out)
    windows = [row for row in made["both"] if row["iou"] == 0]
    key = [(row["image_id"], row["box"], row["image"], row["mask"]) for row in made["boxes"]]
    assert [(row["image_id"], row["box"], row["image"], row["mask"]) for row in made["both"] if row["iou"] > 0] == key
    assert windows and all(row["repeats"] == extra["both"]["repeats_by_class"][str(row["class_id"])] for row in made["both"])
    for row in windows:
        shown = set(np.unique(decode_mask(row["mask"]))) - {255}
        x1, y1, x2, y2 = row["box"]
        assert x2 - x1 == y2 - y1 and min(x1, y1) >= 0 and int(row["class_id"]) in shown
        assert row["repeats"] >= max(
            extra["both"]["repeats_by_class"][str(c)] for c in shown if (decode_mask(row["mask"]) == c).mean() > 0.05
        )
    stage1 = mine_examples(1, images_uri, None, str(tmp_path / "s1"), ExampleSettings(), 64, **options)
    assert not [row for row in crops(str(tmp_path / "s1")) if row["iou"] != 1] and stage1.rows


def test_with_windows_alone_no_box_is_searched(executor, images, rows, tmp_path):
    uri = str(tmp_path / "proposals")
    settings = ProposalSettings(kind="windows", edge_model=str(tmp_path / "not there.yml.gz"))
    made = make_proposals(images(rows, 2), uri, settings, "p" * 16, executor)
    assert made.rows == len(rows) and not made.rejects
    assert [(row["image_id"], row["width"], row["height"]) for row in content(uri)] == [
        (row["image_id"], row["width"], row["height"]) for row in rows
    ]
    assert not any(row["boxes"] or row["scores"] for row in content(uri))
    assert {len(boxes) for part in made.parts for _, boxes, _ in iter_proposals(uri, part)} == {0}
