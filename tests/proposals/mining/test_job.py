"""The jobs that make the proposals and examples tables."""

import cv2
import numpy as np
import pytest

from infra import storage
from infra.errors import UserError
from infra.storage import tables
from proposals import edge_boxes, schemas
from proposals.changes import PreviousTable, find_changes
from proposals.edgebox import EdgeBoxOptions
from proposals.image_codec import decode_image, decode_mask, encode_mask
from proposals.job import iter_proposals, make_proposals, proposals_row
from proposals.mining.job import mine_examples
from proposals.settings import ExampleSettings, ProposalSettings

SEARCH = ProposalSettings(max_boxes=300, min_box_area=100)


def content(uri: str) -> list:
    return list(tables.iter_rows(uri))


@pytest.mark.ray
def test_tables_do_not_depend_on_the_number_of_parts(ray_executor, images, rows, tmp_path):
    """One part is one task, so one CPU; five parts run on two CPUs."""
    made = {}
    for parts in (1, 5):
        images_uri, found = images(rows, parts), str(tmp_path / f"proposals-{parts}")
        proposals = make_proposals(images_uri, found, SEARCH, "p" * 16, ray_executor)
        assert len(proposals.parts) == parts and proposals.rows == len(rows) and not proposals.rejects
        made[parts] = [content(found)]
        for stage in (1, 2):
            out = str(tmp_path / f"stage{stage}-{parts}")
            settings = ExampleSettings(max_per_image=9)
            commit = mine_examples(
                stage, images_uri, found, out, settings, 64, seed=3, fingerprint="e" * 16, executor=ray_executor
            )
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
    made = content(out)
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
    made = content(out)
    counts = {c: sum(m["class_id"] == c for m in made) for c in (1, 2)}
    assert commit.extra["examples_by_class"] == {str(c): n for c, n in counts.items()}
    repeats = {c: min(int(max(counts.values()) / n + 0.5), 10) for c, n in counts.items()}
    assert all(m["repeats"] == repeats[m["class_id"]] for m in made)
    assert commit.extra["seen_by_class"] == {str(c): counts[c] * repeats[c] for c in counts}
    assert sum(g.repeats for p in commit.parts for g in p.row_groups) == sum(m["repeats"] for m in made)
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
def test_every_setting_changes_the_examples(executor, images, rows, tmp_path, stage):
    """In stage 1, three objects of class 1 to one of class 2, and only the settings of proposals have no effect."""
    assert set(ANOTHER) == set(ExampleSettings.model_fields)
    few = [row for row in rows if row["image_id"].isdigit()][:4]
    for row in few[1:]:  # object 2 becomes one of class 1
        row["class_mask"] = encode_mask((decode_mask(row["object_mask"]) % 255 > 0).astype(np.uint8))
    images_uri, found, made = images(few, 1), str(tmp_path / "p"), {}
    make_proposals(images_uri, found, SEARCH, "p" * 16, executor)
    for name, value in [("", None), *ANOTHER.items()]:
        settings, out = ExampleSettings(**({name: value} if name else {})), str(tmp_path / f"out{name}")
        mine_examples(stage, images_uri, found, out, settings, 64, fingerprint="e" * 16, executor=executor)
        made[name] = content(out)
    same = {name for name in ANOTHER if made[name] == made[""]}
    assert same == ({"min_iou", "max_per_image"} if stage == 1 else set())


def test_dev_examples_are_not_repeated(executor, images, rows, make_row, tmp_path):
    """Two objects of class 1 in one image, classes 1 and 2 in the other: in train, class 2 is repeated."""
    image = np.zeros((40, 80, 3), np.uint8)
    objects = np.repeat(np.array([[0, 1, 2, 0]], np.uint8), 40, axis=0).repeat(20, axis=1)
    rows = [make_row("000", image, (objects > 0).astype(np.uint8), objects, s) for s in ("train", "dev")]
    rows += [make_row("001", image, objects, objects, s) for s in ("train", "dev")]
    uri = images(rows, 1)
    seen = {}
    for name, split, settings in [
        ("train", "train", ExampleSettings()),
        ("unbalanced", "train", ExampleSettings(balance=False)),
        ("dev", "dev", ExampleSettings()),
    ]:
        mine_examples(1, uri, None, str(tmp_path / name), settings, 64, split=split, fingerprint="d" * 16, executor=executor)
        seen[name] = [(m["class_id"], m["repeats"]) for m in content(str(tmp_path / name))]
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
    uri, found = images(voc_rows, 2), str(tmp_path / "p")
    make_proposals(uri, found, ProposalSettings(), "p" * 16, executor)
    easy = mine_examples(1, uri, None, str(tmp_path / "1"), ExampleSettings(), 64, fingerprint="e" * 16, executor=executor)
    hard = mine_examples(
        2, uri, found, str(tmp_path / "2"), ExampleSettings(max_per_image=30), 64, fingerprint="e" * 16, executor=executor
    )
    assert easy.rows >= 6 and hard.rows >= 40
    assert max(max(np.unique(decode_mask(m["mask"]))[:-1], default=0) for m in content(str(tmp_path / "2"))) <= 20


def test_rows_of_unchanged_images_are_copied_and_the_others_made(executor, images, rows, tmp_path):
    """Copied rows are recognised by marks in the previous tables. Without marks, the result is the same as if all were new."""
    settings = ExampleSettings(max_per_image=9)
    before = [r for r in rows if r["image_id"] != "002"]
    other = next(r for r in rows if r["image_id"] == "005")
    before[before.index(next(r for r in before if r["image_id"] == "003"))] = {**other, "image_id": "003", "split": "dev"}
    relabelled = next(r for r in before if r["image_id"] == "001")
    before[before.index(relabelled)] = {**relabelled, "class_mask": other["class_mask"], "object_mask": other["object_mask"]}
    uris = {name: str(tmp_path / name) for name in ("old", "oldstage2", "marked", "markedstage2", "changes", "new", "newstage2")}
    old, now = images(before, 3), images(rows, 4)

    def make(images_uri: str, prefix: str, previous: str | None = None) -> None:
        def of(table: str) -> PreviousTable | None:
            if previous is None:
                return None
            uri = uris[previous + table]
            return PreviousTable(uri, uris["changes"], tables.require_commit(uri).fingerprint)

        make_proposals(images_uri, uris[prefix], SEARCH, "p" * 16, executor, previous=of(""))
        out = uris[f"{prefix}stage2"]
        mine_examples(
            2, images_uri, uris[prefix], out, settings, 64, fingerprint="e" * 16, executor=executor, previous=of("stage2")
        )

    make(old, "old")
    find_changes(now, old, uris["changes"], "c" * 16, executor)
    # Marked copies of the previous tables: one box per image, and 7 as the stage.
    for table, schema, mark in (
        ("", schemas.PROPOSALS, {"boxes": [[1.0, 2.0, 30.0, 40.0]], "scores": [0.75]}),
        ("stage2", schemas.EXAMPLES, {"stage": 7}),
    ):
        marked = [{**r, **mark} for r in tables.iter_rows(uris[f"old{table}"])]
        part = tables.write_part(uris[f"marked{table}"], "m" * 16, 0, marked, schema)
        tables.commit(uris[f"marked{table}"], "m" * 16, [part])
    make(now, "new", "marked")
    fresh = {r["image_id"] for r in tables.iter_rows(uris["new"]) if r["scores"] != [0.75]}
    assert fresh == {"002", "003"}, "only new and changed images get new proposals"
    recut = {r["image_id"] for r in tables.iter_rows(uris["newstage2"]) if r["stage"] == 2}
    assert "001" not in {r["image_id"] for r in tables.iter_rows(uris["newstage2"]) if r["stage"] == 7}
    assert {"000", "004"}.isdisjoint(recut)
    # With the unmarked previous tables, the result equals tables made without any, repeats included.
    for name in ("new", "newstage2"):
        storage.remove(uris[name])
    make(now, "new", "old")
    again = {name: str(tmp_path / f"again{name}") for name in ("", "stage2")}
    make_proposals(now, again[""], SEARCH, "p" * 16, executor)
    mine_examples(2, now, again[""], again["stage2"], settings, 64, fingerprint="e" * 16, executor=executor)
    assert content(uris["new"]) == content(again[""])
    assert content(uris["newstage2"]) == content(again["stage2"])


def test_windows_are_cut_in_stage_2_beside_the_proposals_and_balanced_by_their_rarest_class(executor, images, rows, tmp_path):
    images_uri, found = images(rows, 2), str(tmp_path / "proposals")
    make_proposals(images_uri, found, SEARCH, "p" * 16, executor)
    made, extra = {}, {}
    for name, sizes in (("boxes", ()), ("both", (1.0, 0.5))):
        out = str(tmp_path / name)
        options = {"fingerprint": "e" * 16, "executor": executor, "windows": (sizes, 0.5)}
        extra[name] = mine_examples(2, images_uri, found, out, ExampleSettings(), 64, **options).extra
        made[name] = content(out)
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
    assert not [row for row in content(str(tmp_path / "s1")) if row["iou"] != 1] and stage1.rows


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
