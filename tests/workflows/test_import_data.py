"""import_data.py: data sets that are imported, checked, refused, and trained on."""

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deconvnet.datasets import formats, voc
from deconvnet.datasets.synthetic import write_dataset
from deconvnet.datasets.validation import check, contact_sheet
from infra.errors import UserError
from proposals.image_codec import decode_mask, encode_mask
from workflows import cli, import_data, train_pipeline
from workflows.operations import data_import
from workflows.settings import CONFIGS
from workflows.settings.import_data import ImportSettings

CLASSES = "background,disc,square,triangle,star,ring"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten generated images, and a folder with their masks."""
    folder = tmp_path_factory.mktemp("import") / "data"
    write_dataset(str(folder), 0, 8, 2, 60, 80)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_sheets() -> Iterator[None]:
    """Contact sheets are not drawn, as that takes longer than all the rest. One test draws its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "draw_contact_sheet", lambda *_: b"sheet")
        yield


def arguments(data: Path, to: Path, *more: str) -> list[str]:
    images, masks = str(data / "JPEGImages"), str(data / "SegmentationClass")
    return ["--from", "masks", "--images", images, "--annotations", masks, "--to", str(to), *more]


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


def test_names_with_commas_reach_the_pipeline_whole():
    classes = ("background", "lamp, lit", "it's")
    command = shlex.split(data_import.train_command(Path("/d"), classes))
    settings = train_pipeline.parser("").parse_settings([*command[4:], "--model.vgg16", ""])[0]
    assert settings.data.classes == classes


SQUARE = [[5, 5, 40, 5, 40, 40, 5, 40]]


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


@pytest.fixture(scope="module")
def imported(data, tmp_path_factory) -> Path:
    """A folder with `mine` and its lists, to be copied."""
    folder = tmp_path_factory.mktemp("imported")
    lists = folder / "lists"
    lists.mkdir()
    for split, ids in (("train", voc.read_split(str(data), "train")[:5]), ("val", voc.read_split(str(data), "val"))):
        (lists / f"{split}.txt").write_text("\n".join(ids))
    given = ["--train_list", str(lists / "train.txt"), "--val_list", str(lists / "val.txt"), "--classes", CLASSES]
    import_data.main(arguments(data, folder / "mine", *given))
    return folder


@pytest.fixture
def mine(imported, tmp_path) -> Path:
    """The generated images as an imported data set without its last three images of train."""
    shutil.copytree(imported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "mine"


def added(data: Path, to: Path, *more: str) -> list[str]:
    """Options that add the images to a data set."""
    options = arguments(data, to, "--classes", CLASSES, *more)
    options[options.index("--to")] = "--add_to"
    return options


def outcome(said: str) -> str:
    """The line that says what becomes of the images."""
    return next(line for line in said.splitlines() if "masks replaced" in line)


def test_images_are_added_to_a_data_set_and_a_second_time_nothing_changes(data, mine, capsys):
    ids = {split: voc.read_split(str(data), split) for split in ("train", "val")}
    (mine / "SegmentationClass" / f"{ids['val'][0]}.png").write_bytes(encode_mask(np.full((60, 80), 5, np.uint8)))
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*") if path.is_file()}
    words = "added: 3 (3 train); masks replaced: 1; unchanged: 6; refused: 0; unusable: 0"
    import_data.main(added(data, mine, "--val_share", "0", "--dry-run"))
    assert outcome(capsys.readouterr().out) == f"would be {words}"
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*") if path.is_file()} == before
    import_data.main(added(data, mine, "--val_share", "0", "--seed", "3"))
    said = capsys.readouterr().out
    assert outcome(said) == words and "python workflows/retrain.py" in said
    for split in ("train", "val"):
        assert voc.read_split(str(mine), split) == ids[split]
    for image_id in ids["train"] + ids["val"]:
        name = f"SegmentationClass/{image_id}.png"
        assert np.array_equal(decode_mask((mine / name).read_bytes()), decode_mask((data / name).read_bytes()))
    assert (mine / "check.md").read_text() in said and "| train |      8 |" in said
    import_data.main(added(data, mine))
    assert outcome(capsys.readouterr().out) == "added: 0; masks replaced: 0; unchanged: 10; refused: 0; unusable: 0"
    lists = [text for split in ("train", "val") for text in (f"--{split}_list", str(mine.parent / f"lists/{split}.txt"))]
    import_data.main(added(data, mine, *lists, "--dry-run"))
    assert "note: 3 annotated images are in neither list and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "new"), [("1", []), ("3", ["train_00007"])])
def test_few_images_are_split_as_in_one_import_of_all(data, mine, tmp_path, seed, new):
    """With these seeds, one image of all ten is drawn for val. If it is not new, none of the new images goes there."""
    ids = [voc.read_split(str(data), split) for split in ("train", "val")]
    for image_id in ids[0][5:]:
        for name in (f"JPEGImages/{image_id}.jpg", f"SegmentationClass/{image_id}.png"):
            (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "new" / name).write_bytes((data / name).read_bytes())
    import_data.main(added(tmp_path / "new", mine, "--val_share", "0.001", "--seed", seed))
    assert [voc.read_split(str(mine), split) for split in ("train", "val")] == [
        [each for each in ids[0] if each not in new],
        ids[1] + new,
    ]


def test_another_image_of_the_same_name_is_refused_in_a_dry_run_too(data, mine, tmp_path, capsys):
    names = [f"{each}.jpg" for each in voc.read_split(str(data), "train")[:2]]
    for name in names:
        (mine / "JPEGImages" / name).write_bytes(
            (data / "JPEGImages" / f"{voc.read_split(str(data), 'val')[0]}.jpg").read_bytes()
        )
    for dry in (["--dry-run"], []):
        with pytest.raises(UserError, match=r"2 new images have the names of different images in .*: train_00000, train_00001"):
            import_data.main(added(data, mine, *dry))
        assert outcome(capsys.readouterr().out).startswith(
            "would be added: 3 (3 train); masks replaced: 0; unchanged: 5; refused: 2"
        )
    assert len(voc.read_split(str(mine), "train")) == 5 and not (mine / ".adding").exists()


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (["star"], [], None),
        (["star", "lamp"], [], "the annotations have the class lamp, and the data set has disc, square, triangle, star, ring"),
        (["star", "lamp"], ["--classes", "disc,square,triangle,star,ring"], None),
        (["star"], ["--classes", "star,ring"], "the classes background, star, ring, and .* has background, disc, square, triang"),
    ],
)
def test_the_classes_are_those_of_the_data_set(data, mine, tmp_path, labels, more, words):
    """A class may be missing from what is added, and ids stay; a class that the data set does not have is not background."""
    image_id = voc.read_split(str(data), "train")[0]
    outlines = [[5 + 30 * n, 5, 25 + 30 * n, 5, 25 + 30 * n, 30, 5 + 30 * n, 30] for n in range(len(labels))]
    content = {
        "images": [{"id": 1, "file_name": f"{image_id}.jpg", "width": 80, "height": 60}],
        "annotations": [{"image_id": 1, "category_id": n, "segmentation": [outline]} for n, outline in enumerate(outlines)],
        "categories": [{"id": n, "name": label} for n, label in enumerate(labels)],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    given = ["--from", "coco", "--images", str(data / "JPEGImages"), "--annotations", str(tmp_path / "c.json")]
    before = (mine / f"SegmentationClass/{image_id}.png").read_bytes()
    if words:
        with pytest.raises(UserError, match=words):
            import_data.main([*given, "--add_to", str(mine), *more])
        assert (mine / f"SegmentationClass/{image_id}.png").read_bytes() == before
        return
    import_data.main([*given, "--add_to", str(mine), *more])
    mask = decode_mask((mine / f"SegmentationClass/{image_id}.png").read_bytes())
    assert mask[15, 15] == 4 and set(np.unique(mask)) == {0, 4}
    assert decode_mask((mine / f"SegmentationObject/{image_id}.png").read_bytes())[15, 15] == 1


def test_images_that_are_given_for_another_split_stay_where_they_are_and_are_counted(data, mine, tmp_path, capsys):
    ids = {split: voc.read_split(str(mine), split) for split in ("train", "val")}
    (tmp_path / "val.txt").write_text("\n".join(ids["train"][:2]))
    import_data.main(added(data, mine, "--val_list", str(tmp_path / "val.txt")))
    said = capsys.readouterr().out
    assert "note: 2 images of train are given for another split, but stay in train" in said
    assert "note: 2 images of val are given for another split, but stay in val" in said
    assert voc.read_split(str(mine), "train")[:5] == ids["train"] and voc.read_split(str(mine), "val") == ids["val"]


def test_a_data_set_without_the_names_of_its_classes_needs_them(data, mine):
    (mine / "classes.txt").unlink()
    options = added(data, mine, "--dry-run")
    import_data.main(options)
    with pytest.raises(UserError, match=r"has no classes\.txt: name its classes by --classes"):
        import_data.main([*options[: options.index("--classes")], "--dry-run"])


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
        (["--check", "/nowhere/at/all"], "there is no data folder /nowhere/at/all"),
        (["--from", "labelme", "--annotations", "/nowhere", "--to", "x"], "/nowhere holds no .json file"),
        (["--from", "labelme", "--annotations", "x", "--to", "y", "--table", "t"], "table is for masks"),
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
