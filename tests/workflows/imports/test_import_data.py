"""import_data.py: data sets that are imported, checked, refused, and trained on."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from deconvnet.datasets import formats, voc
from deconvnet.datasets.synthetic import write_dataset
from deconvnet.datasets.validation import check, contact_sheet
from infra.errors import UserError
from proposals.image_codec import decode_mask, encode_mask
from tests.workflows.imports.importing import CLASSES, added, arguments
from workflows import cli, import_data, train_pipeline
from workflows.operations import data_import
from workflows.settings import CONFIGS
from workflows.settings.import_data import ImportSettings

SQUARE = [[5, 5, 40, 5, 40, 40, 5, 40]]


def test_a_folder_of_masks_becomes_a_data_set_to_train_on(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "draw_contact_sheet", contact_sheet.draw_contact_sheet)
    to = tmp_path / "my data"
    import_data.main(arguments(data, to, "--classes", CLASSES))
    said = capsys.readouterr().out
    for photograph in (data / "JPEGImages").iterdir():
        assert (to / "JPEGImages" / photograph.name).read_bytes() == photograph.read_bytes()
        name = f"SegmentationClass/{photograph.stem}.png"
        assert np.array_equal(decode_mask((to / name).read_bytes()), decode_mask((data / name).read_bytes()))
    assert len(voc.read_split(str(to), "trainval")) == 10
    assert (to / "check.md").read_text() in said and (to / "contact_sheet.png").stat().st_size > 10_000
    assert str(to / "check.md") in said and ".importing" not in said and ".importing" not in (to / "check.md").read_text()
    command = shlex.split(said.strip().splitlines()[-1])
    assert command[:2] == ["python", "workflows/train_pipeline.py"] and command[command.index("--data.classes") + 1] == CLASSES
    train_pipeline.main([*command[4:], "--workspace", str(tmp_path / "work"), "--model.vgg16", "", "--dry-run"])
    assert "would run" in capsys.readouterr().out


def test_the_table_of_mask_values_that_an_import_leaves_can_be_corrected_and_given_back(data, tmp_path, capsys):
    import_data.main(arguments(data, tmp_path / "first"))
    found = (tmp_path / "first/values.txt").read_text()
    assert found in capsys.readouterr().out
    (tmp_path / "mine.txt").write_text(found.replace("id_3", "triangle"))
    import_data.main(arguments(data, tmp_path / "second", "--table", str(tmp_path / "mine.txt")))
    first, second = ((tmp_path / name / "classes.txt").read_text().splitlines() for name in ("first", "second"))
    assert second == ["triangle" if name == "id_3" else name for name in first] != first
    for mask in (tmp_path / "first/SegmentationClass").iterdir():
        assert (tmp_path / "second/SegmentationClass" / mask.name).read_bytes() == mask.read_bytes()


def test_an_import_says_how_many_images_and_annotations_it_has_and_where_they_are(data, tmp_path, capsys):
    """Two of eleven images are unusable, one already for want of a file; three annotations are crowds."""
    ids = ["gone", *sorted(each.stem for each in (data / "JPEGImages").iterdir())]
    size = {"width": 80, "height": 60}
    content = {
        "images": [{"id": n, "file_name": f"{name}.jpg", **size} for n, name in enumerate(ids)],
        "annotations": [
            {"image_id": n, "category_id": 8, "segmentation": SQUARE, "iscrowd": int(n > 7)} for n in range(len(ids))
        ],
        "categories": [{"id": 8, "name": "thing"}],
    }
    content["images"][1]["width"] = 81
    (tmp_path / "c.json").write_text(json.dumps(content))
    given = ["--from", "coco", "--images", str(data / "JPEGImages"), "--annotations", str(tmp_path / "c.json")]
    given += ["--to", str(tmp_path / "new"), "--max_rejects", "1", "--max_void", "1"]
    given += ["--val_list", str(data / "ImageSets/Segmentation/val.txt")]
    import_data.main([*given, "--dry-run"])
    dry = capsys.readouterr().out.splitlines()
    assert "10 annotated images (8 train, 2 val), 1 unusable" in dry
    assert re.match(r"would import 9 images; unusable: 2 \(1× no such image below", dry[-1]), dry[-1]
    import_data.main(given)
    said = capsys.readouterr().out.splitlines()
    assert "10 annotated images (8 train, 2 val), 1 unusable" in said
    assert "not imported: 2 images, 3 annotations; see rejects.csv" in said
    for title, name in (("data", ""), ("check", "check.md"), ("contact sheet", "contact_sheet.png"), ("rejects", "rejects.csv")):
        assert title == "rejects" or f"{title:<13}  {tmp_path / 'new' / name}" in said
        assert (tmp_path / "new" / name).exists()


def test_names_with_commas_reach_the_pipeline_whole():
    classes = ("background", "lamp, lit", "it's")
    command = shlex.split(data_import.train_command(Path("/d"), classes))
    settings = train_pipeline.parser("").parse_settings([*command[4:], "--model.vgg16", ""])[0]
    assert settings.data.classes == classes


@pytest.mark.parametrize(
    ("options", "lost", "image"),
    [
        ([], {"iscrowd": 1}, {}),
        ([], {"image_id": 99}, {}),
        ([], {"segmentation": [[5, 5, 20, 5]]}, {}),
        ([], {"segmentation": [[5, 5, "x", 5]]}, {}),
        ([], {}, {"file_name": "gone.jpg"}),
        ([], {}, {"width": 81}),
        (["--max_void", "1", "--max_rejects", "1"], {"iscrowd": 1}, {"width": 81}),
    ],
)
def test_a_dry_run_counts_and_stops_as_the_import_does(data, tmp_path, capsys, options, lost, image):
    ids = sorted(each.stem for each in (data / "JPEGImages").iterdir())
    one = {"category_id": 8, "segmentation": SQUARE}
    content = {
        "images": [
            {"id": n, "file_name": f"{each}.jpg", "width": 80, "height": 60, **(image if n == 2 else {})}
            for n, each in enumerate(ids)
        ],
        "annotations": [{"image_id": n, **one, **(lost if n < 2 else {})} for n in range(len(ids))],
        "categories": [{"id": 8, "name": "thing"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    given = ["--from", "coco", "--images", str(data / "JPEGImages"), "--annotations", str(tmp_path / "c.json")]
    said = []
    for dry in (["--dry-run"], []):
        try:
            import_data.main([*given, "--to", str(tmp_path / "new"), *dry, *options])
            lines = capsys.readouterr().out.splitlines()
            said.append([line for line in lines if line.startswith("no objects: ")])
        except UserError as error:
            said.append([str(error)])
        assert (tmp_path / "new").exists() == (not dry and bool(options))
    assert said[0] == said[1] and said[0]
    if options:
        with pytest.raises(UserError, match="exists and is not empty"):
            import_data.main([*given, "--to", str(tmp_path / "new"), "--dry-run", *options])


def test_a_dry_run_and_a_failed_import_write_nothing(data, tmp_path, capsys):
    to = tmp_path / "new"
    import_data.main(arguments(data, to, "--dry-run"))
    said = capsys.readouterr().out
    assert "10 annotated images" in said and said.strip().endswith("would import 10 images; unusable: 0")
    with pytest.raises(UserError, match=r"10 of 10 images can't be used .* max_rejects allows 5%"):
        import_data.main(arguments(data, to, "--classes", "background,disc"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (["--crowd", "object"], ["crowd object has no effect on masks"]),
        (
            ["--others", "void", "--overlap", "order"],
            ["others void has no effect on masks", "overlap order has no effect on masks"],
        ),
        (["--report", "/elsewhere"], ["report /elsewhere has no effect on masks"]),
        (["--crowd", "void", "--strange", "void", "--seed", "3"], []),
    ],
)
def test_options_without_effect_are_named(options, notes, data, tmp_path, capsys):
    import_data.main(arguments(data, tmp_path / "new", "--classes", CLASSES, "--dry-run", *options))
    said = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("note: ") for line in said if "no effect" in line] == notes


def test_options_of_an_import_have_no_effect_on_a_check(data, tmp_path, capsys):
    import_data.main(
        ["--check", str(data), "--report", str(tmp_path), "--classes", CLASSES, "--fold_case", "true", "--threads", "2"]
    )
    assert [line for line in capsys.readouterr().out.splitlines() if "no effect" in line] == [
        "note: fold_case True has no effect on a check"
    ]
    known = {*ImportSettings.model_fields}
    assert known.issuperset(data_import.FORMATS_OF_OPTION) and known.issuperset(data_import.OPTIONS_OF_CHECK)
    assert {name for names in data_import.FORMATS_OF_OPTION.values() for name in names} <= {
        *formats.format_names(),
        "check",
        "add_to",
    }


def test_masks_are_imported_where_the_system_can_not_tell_which_cpus_a_process_may_use(data, tmp_path, monkeypatch, capsys):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    import_data.main(arguments(data, tmp_path / "new", "--classes", CLASSES, "--dry-run"))
    assert "would import 10 images" in capsys.readouterr().out


def test_an_existing_folder_is_not_overwritten(data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        import_data.main(arguments(data, tmp_path, "--classes", CLASSES))
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_a_given_split_is_kept(data, tmp_path):
    """Two COCO files for one folder of images."""
    for split in ("train", "val"):
        ids = voc.read_split(str(data), split)
        square = [[5, 5, 40, 5, 40, 40, 5, 40]]
        content = {
            "images": [{"id": n, "file_name": f"{each}.jpg", "width": 80, "height": 60} for n, each in enumerate(ids)],
            "annotations": [{"id": n, "image_id": n, "category_id": 8, "segmentation": square} for n in range(len(ids))],
            "categories": [{"id": 8, "name": "thing"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    to = tmp_path / "to"
    given = ["--annotations", str(tmp_path / "train.json"), "--val_annotations", str(tmp_path / "val.json")]
    import_data.main(["--from", "coco", "--images", str(data / "JPEGImages"), *given, "--to", str(to)])
    for split in ("train", "val"):
        assert voc.read_split(str(to), split) == sorted(voc.read_split(str(data), split))
    assert (to / "classes.txt").read_text() == "background\nthing\n" and len(list((to / "SegmentationObject").iterdir())) == 10


@pytest.mark.parametrize(
    ("lost", "said", "remedy"),
    [
        ({"segmentation": [], "bbox": [5, 5, 20, 20]}, "thing has a box and no outline: its box becomes void", "--boxes object"),
        ({"iscrowd": "1"}, "thing is a crowd, which becomes void", "--crowd object"),
        ({"segmentation": [[5, 5, 20, 5]]}, "thing covers no pixel", "--classes"),
    ],
)
def test_annotations_that_become_no_objects_are_counted_and_too_many_stop_the_import(data, tmp_path, capsys, lost, said, remedy):
    ids = [each.stem for each in (data / "JPEGImages").iterdir()]
    one = {"category_id": 8, "segmentation": [[5, 5, 40, 5, 40, 40, 5, 40]]}
    content = {
        "images": [{"id": n, "file_name": f"{each}.jpg", "width": 80, "height": 60} for n, each in enumerate(ids)],
        "annotations": [{"image_id": n, **one, **(lost if n < 2 else {})} for n in range(len(ids))],
        "categories": [{"id": 8, "name": "thing"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    given = [
        "--from",
        "coco",
        "--images",
        str(data / "JPEGImages"),
        "--annotations",
        str(tmp_path / "c.json"),
        "--to",
        str(tmp_path / "to"),
    ]
    with pytest.raises(UserError, match=rf"2 of 10 annotations .*\(2× {said}\).* 10%: .*{remedy}.*raise --max_void"):
        import_data.main(given)
    assert not (tmp_path / "to").exists()
    import_data.main([*given, "--max_void", "0.2"])
    assert f"2× {said}" in capsys.readouterr().out
    assert "2 of 10 annotations (20.0 %)" in (tmp_path / "to/check.md").read_text()
    assert (tmp_path / "to/rejects.csv").read_text().count("annotation,") == 2


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        ("background\r\nFußgänger \r\nring\r\n\r\n \r\n".encode("utf-16"), [], ""),
        ("background\nFußgänger\nring\n".encode("cp1252"), ["--encoding", "cp1252"], ""),
        ("background\nFußgänger\nring".encode("cp1252"), [], r"classes\.txt can't be used: byte 13 .*--encoding"),
        (b"background\n\nFussgaenger\nring\n", [], r"classes\.txt can't be used: line 2 is empty: delete it, or"),
        (b" \n", [], r"classes\.txt can't be used: it has no class name"),
    ],
    ids=["utf-16", "named", "not-named", "blank-line", "empty"],
)
def test_class_names_written_by_hand_keep_their_ids_or_are_refused(data, tmp_path, capsys, content, more, words):
    mine = Path(shutil.copytree(data, tmp_path / "mine"))
    (mine / "classes.txt").write_bytes(content)
    if words:
        for command in (["--check", str(mine), *more], [*added(data, mine)[:-2], "--dry-run", *more]):
            with pytest.raises(UserError, match=words):
                import_data.main(command)
        return
    assert data_import.read_classes(str(mine), *more[1:]) == ("background", "Fußgänger", "ring")
    import_data.main(["--check", str(mine), *more])
    said = capsys.readouterr().out
    assert "| Fußgänger" in said and "no effect" not in said


def test_check_writes_to_the_data_or_to_another_folder(data, tmp_path, capsys):
    before = sorted(data.rglob("*"))
    import_data.main(["--check", str(data), "--report", str(tmp_path / "report")])
    said = capsys.readouterr().out
    assert "| star" in said and sorted(data.rglob("*")) == before
    assert {each.name for each in (tmp_path / "report").iterdir()} == {"check.md", "contact_sheet.png"}


def test_the_check_tells_what_training_would_set_aside(tmp_path, capsys):
    write_dataset(str(tmp_path), 0, 4, 2, 60, 80)
    (tmp_path / "SegmentationClass/train_00001.png").write_bytes(encode_mask(np.full((60, 80), 9, np.uint8)))
    import_data.main(["--check", str(tmp_path)])
    assert "**unusable**, 1 image (training would leave these out): train_00001: class id 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "give --from coco, labelme, masks or another format"),
        (["--from", "coco"], "to is not given"),
        (["--from", "coco", "--to", "x"], "--annotations"),
        (["--from", "coco", "--to", "x", "--annotations", "y"], "name the folder of images by --images"),
        (["--from", "pascal", "--to", "x"], "from: 'pascal' is not allowed"),
        (["--check", "x", "--to", "y"], "--check is for an existing folder"),
        (["--check", "x", "--add_to", "y"], "--check is for an existing folder"),
        (["--from", "coco", "--to", "x", "--add_to", "y"], "leave out one of them"),
        (["--from", "labelme", "--annotations", "x", "--add_to", "/nowhere/at/all"], "there is no data folder /nowhere/at/all"),
        (["--from", "labelme", "--annotations", "x", "--add_to", "s3://bucket/data"], "--add_to s3://bucket/data is in a bucket"),
        (["--from", "labelme", "--annotations", "x", "--to", "s3://bucket/data"], "--to s3://bucket/data is in a bucket"),
        (["--check", "/nowhere/at/all"], "there is no data folder /nowhere/at/all"),
        (["--from", "labelme", "--annotations", "/nowhere", "--to", "x"], "/nowhere holds no .json file"),
        (["--from", "labelme", "--annotations", "x", "--to", "y", "--table", "t"], "table is for masks"),
        (
            ["--from", "masks", "--images", "x", "--annotations", "x", "--to", "y", "--table", "t", "--classes", "a,b"],
            "table is for masks, and names their classes itself",
        ),
        (
            ["--from", "labelme", "--annotations", "x", "--to", "y", "--val_annotations", "v", "--train_list", "t"],
            "val_annotations gives the split already",
        ),
        (
            ["--from", "labelme", "--annotations", "x", "--to", "y", "--val_annotations", "v", "--val_list", "t"],
            "val_annotations gives the split already",
        ),
        (["--from", "masks", "--images", "/nowhere", "--annotations", "/nowhere/m", "--to", "x"], "/nowhere does not exist"),
        (
            ["--from", "coco", "--images", "x", "--annotations", "/no.json", "--to", "x"],
            "/no.json is not COCO JSON: there is no file",
        ),
        (
            ["--from", "labelme", "--annotations", "x", "--to", "y", "--encoding", "gbkk"],
            "encoding: 'gbkk' is not allowed: it must be one of Python's text encodings",
        ),
        (
            ["--from", "labelme", "--annotations", "x", "--to", "y", "--encoding", "hex"],
            "encoding: 'hex' is not allowed: it must be one of Python's text encodings",
        ),
        (["--check", "x", "--encoding", "gbkk"], "encoding: 'gbkk' is not allowed: it must be one of Python's text encodings"),
    ],
)
def test_user_errors_are_sentences(given, words):
    with pytest.raises(UserError) as caught:
        import_data.main(given)
    assert words in str(caught.value)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "UTF_32", "cp1252", None])
def test_encodings_in_which_a_byte_is_no_whole_character_are_accepted_too(encoding):
    settings = ImportSettings.model_validate({"from": "labelme", "annotations": "x", "to": "y", "encoding": encoding})
    assert settings.encoding == encoding


def test_a_switch_needs_no_value():
    """`--fold_case` is `--fold_case true`."""
    given = ["--from", "masks", "--images", "i", "--annotations", "a", "--to", "t"]
    parser = cli.SettingsParser("", ImportSettings, CONFIGS / "import_data.yaml")
    found = [parser.parse_settings([*given, *more])[0].fold_case for more in ([], ["--fold_case"], ["--fold_case", "false"])]
    assert found == [False, True, False]
