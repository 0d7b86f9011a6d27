"""CVAT's XML: shapes of all kinds, what lies on top, exports of tasks and projects, and what is refused or rejected."""

import numpy as np
import pytest

from deconvnet.datasets.formats.cvat import read_cvat
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from deconvnet.datasets.importing.train_val_split import split_images
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import (
    HEIGHT,
    SQUARE,
    TRIANGLE,
    WIDTH,
    rejection_reason,
    scene_mask,
    write_image,
    write_text,
)

LABELS = "<labels>{}</labels>".format(
    "".join(f"<label><name>{name}</name><color>#fa3253</color><attributes/></label>" for name in ("crate", "ball", "unused"))
)


def polygon(label, points, z=0, more=""):
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<polygon label="{label}" source="manual" occluded="0" points="{text}" z_order="{z}" {more}/>'


SCENE = polygon("crate", SQUARE) + polygon("ball", TRIANGLE)


def read(folder, shapes, name="a.jpg", meta=f"<task><id>1</id>{LABELS}</task>", rules=ImportOptions(), encoding="utf-8"):  # noqa: B008
    """The data set of an annotations.xml with one image, images/a.jpg, that has these shapes."""
    write_image(folder / "images/a.jpg")
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<annotations><version>1.1</version><meta>{meta}<dumped/></meta>'
        f'<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image></annotations>'
    )
    write_text(folder / "annotations.xml", text, encoding)
    return read_cvat([AnnotationSource(str(folder), str(folder))], rules)


def mask_of(*arguments, **keywords):
    return read(*arguments, **keywords).entries[0].load().class_mask


@pytest.mark.parametrize("kind", ["task", "project", "job"])
def test_polygons_of_a_task_a_project_or_a_job(tmp_path, kind):
    dataset = read(tmp_path, SCENE, meta=f"<{kind}><id>1</id>{LABELS}</{kind}>")
    assert dataset.classes == ("background", "crate", "ball", "unused") and not dataset.notes
    image = dataset.entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask())
    assert image.object_mask is not None and set(np.unique(image.object_mask)) == {0, 1, 2}


def test_parts_of_a_skeleton_are_no_classes(tmp_path):
    labels = LABELS.replace("</labels>", "<label><name>elbow</name><parent>crate</parent></label></labels>")
    assert read(tmp_path, SCENE, meta=f"<task>{labels}</task>").classes == ("background", "crate", "ball", "unused")


@pytest.mark.parametrize("given", ["file and images", "file", "folder"])
def test_the_file_or_its_folder_is_named(tmp_path, given):
    read(tmp_path, SCENE)
    annotations = tmp_path if given == "folder" else tmp_path / "annotations.xml"
    images = tmp_path / "images" if given == "file and images" else annotations
    dataset = read_cvat([AnnotationSource(str(images), str(annotations))], ImportOptions())
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, scene_mask())


def test_masks_are_run_lengths_row_by_row_in_their_window(tmp_path):
    mask = '<mask label="crate" rle="1, 2, 1, 4, 3, 1" left="10" top="5" width="4" height="3" z_order="0"/>'
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:8, 10:14] = [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]
    np.testing.assert_array_equal(mask_of(tmp_path, mask), expected)


def test_ellipses_and_boxes_turn_clockwise(tmp_path):
    ellipse = '<ellipse label="ball" cx="30" cy="20" rx="16" ry="4" rotation="90" z_order="0"/>'
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((x - 30) / 4) ** 2 + ((y - 20) / 16) ** 2 <= 1
    assert ((mask_of(tmp_path / "e", ellipse) == 2) != inside).sum() <= 8
    box = '<box label="crate" xtl="10" ytl="10" xbr="30" ybr="20" rotation="{}" z_order="0"/>'
    objects = ImportOptions(boxes_void=False)
    upright = mask_of(tmp_path / "b", box.format(0), rules=objects)
    assert upright.sum() == 200 and (upright[10:20, 10:30] == 1).all()
    turned = mask_of(tmp_path / "t", box.format(90), rules=objects)
    assert turned.sum() == 200 and (turned[5:25, 15:25] == 1).all()
    slanted = mask_of(tmp_path / "s", box.format(30), rules=objects)  # clockwise: its right end goes down
    assert slanted[19, 27] == 1 and slanted[11, 27] == 0


def test_boxes_become_void_unless_they_are_to_be_objects(tmp_path):
    image = read(tmp_path, SCENE + '<box label="crate" xtl="40" ytl="2" xbr="50" ybr="6" z_order="0"/>').entries[0].load()
    assert (image.class_mask[2:6, 40:50] == 255).all() and [loss.remedy for loss in image.lost_annotations] == ["--boxes object"]


def test_shapes_without_area_are_counted_and_tags_are_not_shapes(tmp_path):
    others = (
        '<tag label="ball" source="manual"/><polyline label="crate" points="1,2;3,4" z_order="0"/>'
        '<points label="ball" points="1,2" z_order="0"/><cuboid label="crate" z_order="0"/><skeleton label="ball" z_order="0"/>'
    )
    image = read(tmp_path, others + SCENE).entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask())
    assert [str(loss) for loss in image.lost_annotations][:2] == [
        "polyline 2 (crate) covers no area",
        "points 3 (ball) covers no area",
    ]
    assert len(image.lost_annotations) == 4 and image.annotations == 6


def test_the_higher_z_order_lies_on_top_else_the_smaller(tmp_path):
    small, large = [(10, 10), (20, 10), (20, 20), (10, 20)], [(5, 5), (40, 5), (40, 30), (5, 30)]
    on_top = read(tmp_path / "z", polygon("ball", large, z=3) + polygon("crate", small, z=1))
    assert on_top.entries[0].load().class_mask[15, 15] == 2 and "z_order" in on_top.notes[0]
    assert mask_of(tmp_path / "s", polygon("crate", small) + polygon("ball", large))[15, 15] == 1


def test_a_group_is_one_object(tmp_path):
    shapes = polygon("crate", SQUARE, more='group_id="7"') + polygon("crate", TRIANGLE, more='group_id="7"')
    objects = read(tmp_path, shapes).entries[0].load().object_mask
    assert objects[10, 10] == objects[30, 35] == 1
    shapes = polygon("crate", SQUARE, more='group_id="7"') + polygon("ball", TRIANGLE, more='group_id="7"')
    image = read(tmp_path, shapes).entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask())
    assert set(np.unique(image.object_mask)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (polygon("crate", [(1, 2), (3, 4)]).replace("3.00,4.00", "3.00"), "polygon 1 (crate): "),
        ('<mask label="crate" rle="1, 2" left="1" top="2" width="4" height="3"/>', "its run lengths are of 3 pixels"),
        ('<ellipse label="ball" cx="30" cy="20" rx="16"/>', "ellipse 1 (ball): 'ry'"),
        ('<polygon label="crate" points="1,2;3,x;4,5"/>', "polygon 1 (crate): "),
        ('<box label="crate" xtl="nan" ytl="1" xbr="2" ybr="3"/>', "not finite numbers"),
    ],
)
def test_a_malformed_shape_rejects_its_image(tmp_path, shapes, words):
    assert words in rejection_reason(read(tmp_path, shapes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><track id='0'/></annotations>", "tracks of a video: export it from CVAT as `CVAT for images 1.1`"),
        ("<annotation><object/></annotation>", "not of the format"),
        ("<annotations><meta/></annotations>", "has no images"),
        ("<annotations>", "can't be read as CVAT's XML"),
        ('{"images": []}', "can't be read as CVAT's XML"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    write_text(tmp_path / "annotations.xml", text)
    with pytest.raises(UserError, match=words):
        read_cvat([AnnotationSource(str(tmp_path), str(tmp_path))], ImportOptions())


@pytest.mark.parametrize("label", ["", "  "])
@pytest.mark.parametrize("classes", [(), ("crate",)])
def test_a_shape_without_a_label_rejects_its_image(tmp_path, label, classes):
    dataset = read(tmp_path, SCENE + polygon(label, SQUARE), rules=ImportOptions(classes=classes))
    assert rejection_reason(dataset) == "polygon 3 has no label"


@pytest.mark.parametrize("name", ["images/a.jpg", "./images/a.jpg", "b/../images/a.jpg", "images\\a.jpg"])
def test_an_image_that_is_in_the_file_twice_is_rejected(tmp_path, name):
    twice = f'{SCENE}</image><image id="1" name="{name}" width="{WIDTH}" height="{HEIGHT}">{SCENE}'
    dataset = read(tmp_path, twice, "images/a.jpg")
    assert not dataset.entries and {reject.reason for reject in dataset.rejects} == {"it is in the file 2 times"}


def image(name, shapes, subset=None):
    """The entry of an image; those of projects state its subset."""
    more = f' subset="{subset}"' if subset else ""
    return f'<image id="0" name="{name}"{more} width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'


def read_images(folder, entries, *files, split=None):
    """The data set of an annotations.xml with these entries, and of these image files below images."""
    for file in files:
        write_image(folder / "images" / file)
    write_text(
        folder / "annotations.xml", f"<annotations><meta><project>{LABELS}</project></meta>{''.join(entries)}</annotations>"
    )
    return read_cvat([AnnotationSource(str(folder), str(folder), split)], ImportOptions())


def found(dataset):
    """The split of each image, and the file that it was found in."""
    return {entry.image_id: (entry.split, entry.uri.rpartition("/images/")[2]) for entry in dataset.entries}


def test_frames_of_a_video_are_named_without_suffix(tmp_path):
    entries = [image("frame_000001", SCENE), image("frame_000000", polygon("ball", SQUARE))]
    dataset = read_images(tmp_path, entries, "frame_000000.PNG", "frame_000001.PNG", "frame_000002.PNG")
    assert found(dataset) == {f"frame_00000{n}": (None, f"frame_00000{n}.PNG") for n in (1, 0)} and not dataset.rejects
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, scene_mask())


def test_subsets_of_a_project_are_splits_and_test_is_left_out_unless_it_is_listed(tmp_path):
    """Images of one name have the same ids whether test is left out or not, and if the file has only the first of them."""
    entries = [image("a.jpg", SCENE, "Train"), image("a.jpg", polygon("ball", SQUARE), "Validation")]
    entries += [image("b.jpg", SCENE, "Train"), image("b.jpg", SCENE, "Test"), image("c.jpg", SCENE, "default")]
    files = ["Train/a.jpg", "Validation/a.jpg", "Train/b.jpg", "Test/b.jpg", "default/c.jpg"]
    dataset = read_images(tmp_path, entries, *files)
    assert found(dataset) == {
        "a": ("train", "Train/a.jpg"),
        "Validation_a": ("val", "Validation/a.jpg"),
        "b": ("train", "Train/b.jpg"),
        "Test_b": ("test", "Test/b.jpg"),
        "c": (None, "default/c.jpg"),
    }
    first = read_images(tmp_path, [entries[0], entries[2], *entries[4:]], *files)
    assert {image_id: file for image_id, (_, file) in found(first).items()}.items() <= {
        image_id: file for image_id, (_, file) in found(dataset).items()
    }.items()
    assert (dataset.entries[1].load().class_mask == 2).sum() == 15 * 12 and not dataset.rejects
    splits = {"a": "train", "Validation_a": "val", "b": "train", "c": "train"}
    assert split_images(dataset) == splits and dataset.notes[-1] == "1 images that belong to test are left out, such as Test_b"
    assert split_images(dataset, val_list=["Test/b.jpg", "Train/a.jpg"]) == {
        **dict.fromkeys(("Validation_a", "b", "c"), "train"),
        **dict.fromkeys(("Test_b", "a"), "val"),
    }
    assert split_images(dataset, ["default/c.jpg"], ["Test/b.jpg"]) == {"c": "train", "Test_b": "val"} and not dataset.rejects


def test_images_of_the_subset_test_that_are_not_there_are_no_rejects(tmp_path):
    entries = [image("a.jpg", SCENE, "Train"), image("b.jpg", SCENE, "Validation"), image("c.jpg", SCENE, "Test")]
    dataset = read_images(tmp_path, [*entries, image("d.jpg", SCENE, "Test")], "Train/a.jpg", "Validation/b.jpg", "Test/d.jpg")
    assert list(found(dataset)) == ["a", "b", "d"] and not dataset.rejects
    assert dataset.notes[-1].endswith("1 images of the subset Test are missing, or in the file twice")


def test_without_train_and_val_subsets_say_no_split(tmp_path):
    entries = [image("a.jpg", SCENE, "Train"), image("b.jpg", SCENE, "Test")]
    assert found(read_images(tmp_path, entries, "a.jpg", "b.jpg")) == {
        "a": (None, "a.jpg"),  # of one folder
        "b": ("test", "b.jpg"),
    }
    test_alone = read_images(tmp_path, entries[1:], "b.jpg")
    assert found(test_alone) == {"b": (None, "b.jpg")} and not test_alone.notes
    assert {split for split, _ in found(read_images(tmp_path, entries, split="val")).values()} == {"val"}


def test_an_image_of_one_subset_is_not_taken_for_one_of_another(tmp_path):
    entries = [image("a.jpg", SCENE, "Train"), image("b.jpg", SCENE, "Validation")]
    dataset = read_images(tmp_path, entries, "Train/a.jpg", "Train/b.jpg", "Validation/c.jpg")
    assert list(found(dataset)) == ["a"] and "in the folder Validation" in dataset.rejects[0].reason


def test_images_that_are_not_there_are_rejected(tmp_path):
    dataset = read(tmp_path, SCENE, name="gone.jpg")
    assert not dataset.entries and "no such image" in dataset.rejects[0].reason


def test_labels_in_another_encoding_are_read_by_its_name(tmp_path):
    given = {"meta": "<labels><label><name>裂缝</name></label></labels>", "encoding": "gbk"}
    assert read(tmp_path, polygon("裂缝", SQUARE), rules=ImportOptions(encoding="gbk"), **given).classes[1] == "裂缝"
    with pytest.raises(UserError, match=r"annotations\.xml .*--encoding"):
        read(tmp_path, polygon("裂缝", SQUARE), **given)
