"""COCO, LabelMe and folders of masks, read from small folders: right masks, and what is refused or set aside."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats.coco import read_coco
from deconvnet.datasets.formats.labelme import read_labelme
from deconvnet.datasets.formats.mask_folder import read_masks
from deconvnet.datasets.importing.class_table import read_table
from deconvnet.datasets.importing.source import Part, Rules
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.settings import VOC_CLASSES
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image

H, W = 40, 60
DEFAULT = Rules()
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def photograph(path, suffix="JPEG", orientation=None, size=(W, H)):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path, suffix, exif=exif)


def coco(folder, annotations, images=None, categories=None, rules=DEFAULT, wanted=()):
    photograph(folder / "images/a.jpg")
    document = {
        "images": images or [{"id": 1, "file_name": "a.jpg", "width": W, "height": H}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 90, **each} for n, each in enumerate(annotations, 1)],
        "categories": categories or [{"id": 90, "name": "cat"}, {"id": -3, "name": "dog"}],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return read_coco([Part(str(folder / "images"), str(folder / "coco.json"))], wanted, rules)


def reason(source):
    with pytest.raises(BadInput) as caught:
        source.entries[0].label()
    return str(caught.value)


def test_coco_polygons_runs_and_crowds_by_any_category_ids(tmp_path):
    runs = {"size": [H, W], "counts": [0, H, H * W - H]}  # the first column
    source = coco(
        tmp_path,
        [
            {"segmentation": [SQUARE, [40, 0, 50, 0, 50, 5, 40, 5]]},
            {"segmentation": runs, "category_id": -3},
            {"segmentation": {"size": [H, W], "counts": [H * (W - 1), H]}, "iscrowd": 1},
        ],
    )
    made = source.entries[0].label()
    assert source.classes == ("background", "dog", "cat")  # by category id
    assert made.image == (tmp_path / "images/a.jpg").read_bytes() and made.suffix == ".jpg"
    assert (made.classes == 2).sum() == 400 + 50 and (made.objects[made.classes == 2] == 1).all()
    assert (made.classes[:, 0] == 1).all() and (made.classes[:, -1] == 255).all()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"segmentation": {"size": [W, H], "counts": [0, H * W]}}, "annotation 2: its run lengths are for [60, 40]"),
        ({"segmentation": {"size": [H, W], "counts": [0, 5]}}, "cover 5 px"),
        ({"segmentation": [[1, 2, "x", 4, 5, 6]]}, "no numbers"),
        ({"segmentation": "everything"}, "is a str"),
        ({"segmentation": [SQUARE], "category_id": 7}, "category 7, which the file does not name"),
        ({"segmentation": [SQUARE], "category_id": None}, "category None"),
    ],
)
def test_a_coco_annotation_that_cant_be_read_sets_its_photograph_aside(tmp_path, annotation, words):
    assert words in reason(coco(tmp_path, [{"segmentation": [SQUARE]}, annotation]))


def test_a_coco_box_without_outline_is_void_and_what_covers_nothing_is_passed_over(tmp_path):
    made = coco(
        tmp_path,
        [{"segmentation": [SQUARE]}, {"bbox": [40, 5, 10, 20], "segmentation": []}, {"segmentation": [[1, 1, 5, 5]]}, {}],
    )
    made = made.entries[0].label()
    assert (made.classes == 255).sum() == 200 and made.classes[10, 45] == 255
    assert made.passed_over == ("annotation 3 covers no pixel", "annotation 4 has neither outline nor box")


def test_classes_that_are_not_taken_are_background_or_void(tmp_path):
    annotations = [{"segmentation": [SQUARE]}, {"segmentation": [[40, 0, 50, 0, 50, 5, 40, 5]], "category_id": -3}]
    source = coco(tmp_path, annotations, wanted=("cat",))
    assert source.classes == ("background", "cat") and set(np.unique(source.entries[0].label().classes)) == {0, 1}
    source = coco(tmp_path, annotations, wanted=("cat",), rules=Rules(others_void=True))
    assert source.entries[0].label().classes[2, 45] == 255
    with pytest.raises(UserError, match="--classes: cow is not in the annotations, which have dog, cat"):
        coco(tmp_path, annotations, wanted=("cow",))


def test_coco_photographs_that_are_not_there_or_come_twice(tmp_path):
    photograph(tmp_path / "images/sub/a.jpg")
    (tmp_path / "images/a.png").write_bytes(b"")
    images = [
        {"id": 1, "file_name": "a.jpg", "width": W, "height": H},
        {"id": 1, "file_name": "sub/a.jpg"},
        {"id": 3, "file_name": "../../etc/passwd"},
        {"id": 4},
        {"id": 5, "file_name": "a.png"},
        {"id": 6, "file_name": "sub/a.jpg"},
    ]
    source = coco(tmp_path, [{"segmentation": [SQUARE]}, {"image_id": 99, "segmentation": [SQUARE]}], images)
    assert [entry.image_id for entry in source.entries] == ["a", "sub_a"]
    words = [
        "its image id 1 stands in the file twice",
        "no such photograph below",
        "it has no file_name",
        "it would be called a as",
    ]
    assert all(word in reject.reason for word, reject in zip(words, source.rejects, strict=True))
    assert "1 annotations are of photographs that it does not list" in source.notes[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": {}, "categories": []}', "\xff"])
def test_what_is_no_coco_json_is_refused(tmp_path, text):
    photograph(tmp_path / "a.jpg")
    (tmp_path / "c.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match="is no COCO JSON"):
        read_coco([Part(str(tmp_path), str(tmp_path / "c.json"))], (), Rules())


def test_boxes_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match="boxes alone can't become masks"):
        coco(tmp_path, [{"bbox": [1, 2, 3, 4]}])


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("as_stored", [True, False])
def test_masks_lie_as_the_photograph_is_displayed(tmp_path, orientation, as_stored):
    """The stored photograph is W×H and has a red square where its annotation is; displayed it is H×W."""
    stored = np.zeros((H, W, 3), np.uint8)
    stored[4:12, 6:26] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(stored).save(sink, "PNG", exif=exif)
    shown = decode_image(sink.getvalue())[..., 0] > 100
    seen = stored[..., 0] > 100 if as_stored else shown
    y, x = np.nonzero(seen)
    x0, x1, y0, y1 = (int(v) for v in (x.min(), x.max() + 1, y.min(), y.max() + 1))
    size = {"width": seen.shape[1], "height": seen.shape[0]}
    (tmp_path / "images").mkdir()
    (tmp_path / "images/t.png").write_bytes(sink.getvalue())
    source = coco(
        tmp_path,
        [{"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}],
        [{"id": 1, "file_name": "t.png", **size}],
    )
    made = source.entries[0].label()
    assert np.array_equal(made.classes > 0, shown) and np.array_equal(made.objects > 0, shown)


def test_annotations_of_another_size_set_a_photograph_aside(tmp_path):
    source = coco(tmp_path, [{"segmentation": [SQUARE]}], [{"id": 1, "file_name": "a.jpg", "width": H, "height": W}])
    assert reason(source) == "its annotations are for 40×60, the photograph is 60×40 as displayed"


def labelme(folder, shapes, wanted=(), **more):
    folder.mkdir(exist_ok=True)
    document = {"shapes": shapes, "imagePath": "a.jpg", "imageData": None, "imageWidth": W, "imageHeight": H, **more}
    (folder / "a.json").write_text(json.dumps(document))
    return read_labelme([Part(str(folder), str(folder))], wanted, Rules())


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points, **more}


def test_labelme_shapes(tmp_path):
    photograph(tmp_path / "a.jpg")
    png = io.BytesIO()
    Image.fromarray(np.ones((4, 6), bool)).save(png, "PNG")
    shapes = [
        shape("cat", "rectangle", [[30, 30], [10, 10]]),
        shape("cat", "polygon", [[40, 0], [50, 0], [50, 5], [40, 5]], group_id=4),
        shape("cat", "polygon", [[52, 0], [56, 0], [56, 5], [52, 5]], group_id=4),
        shape("dog", "circle", [[50, 30], [50, 34]]),
        shape("dog", "mask", [[2, 34], [7, 37]], mask=base64.b64encode(png.getvalue()).decode()),
        shape("_background_", "rectangle", [[15, 15], [20, 20]]),
        shape("__ignore__", "rectangle", [[0, 0], [5, 5]]),
        shape("nose", "point", [[3, 3]]),
        shape("cat", "polygon", [[1, 1], [2, 2]]),
    ]
    source = labelme(tmp_path, shapes)
    made = source.entries[0].label()
    assert source.classes == ("background", "cat", "dog", "nose")
    assert (made.classes == 1).sum() == 400 - 25 + 50 + 20 and (made.classes == 255).sum() == 25
    assert made.classes[30, 50] == 2 and made.classes[35, 3] == 2 and (made.classes == 2).sum() == 24 + 52
    assert made.objects[2, 45] == made.objects[2, 54] != made.objects[25, 25]
    assert made.passed_over == ("shape 8 (nose): a point covers no area", "shape 9 (cat) covers no pixel")


def test_labelme_photographs_by_path_by_name_or_embedded(tmp_path):
    folder = tmp_path / "json"
    with pytest.raises(BadInput, match=r"no photograph a\.jpg"):
        labelme(folder, [shape("cat", "polygon", [[1, 1], [9, 1], [9, 9]])]).entries[0].label()
    photograph(tmp_path / "b.jpg")
    data = base64.b64encode((tmp_path / "b.jpg").read_bytes()).decode()
    source = labelme(folder, [shape("cat", "polygon", [[1, 1], [9, 1], [9, 9]])], imageData=data, imagePath="../b.jpg")
    made = source.entries[0].label()  # ../b.jpg is outside the folder of photographs, and is not opened
    assert made.image == (tmp_path / "b.jpg").read_bytes() and made.suffix == ".jpg"
    photograph(folder / "b.jpg", size=(W, H - 10))
    with pytest.raises(BadInput, match="are for 60×40, the photograph is 60×30"):
        labelme(folder, [shape("cat", "polygon", [[1, 1], [9, 1], [9, 9]])], imagePath="..\\x\\b.jpg").entries[0].label()
    with pytest.raises(BadInput, match="imageData"):
        labelme(folder, [shape("cat", "polygon", [[1, 1], [9, 1]])], imageData="AAAA", imagePath="c.jpg").entries[0].label()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (shape("cat", "spline", [[1, 2]]), "shapes of the type spline are not known"),
        (shape("", "polygon", [[1, 2]]), "shape 2 has no label"),
        (shape("cat", "circle", [[1, 2]]), "a circle has 2 points, this one 1"),
        (shape("cat", "polygon", "here"), "no numbers"),
        (shape("cat", "mask", [[1, 1]], mask="!"), "shape 2 (cat): "),
    ],
)
def test_a_labelme_shape_that_cant_be_read_sets_its_photograph_aside(tmp_path, wrong, words):
    photograph(tmp_path / "a.jpg")
    assert words in reason(labelme(tmp_path, [shape("cat", "rectangle", [[1, 1], [9, 9]]), wrong]))


def test_other_json_among_labelme_files_is_set_aside(tmp_path):
    photograph(tmp_path / "a.jpg")
    (tmp_path / "coco.json").write_text('{"images": []}')
    (tmp_path / "cut.json").write_text('{"shapes": [')
    source = labelme(tmp_path, [shape("cat", "rectangle", [[1, 1], [9, 9]])])
    assert len(source.entries) == 1
    assert [r.reason[:8] for r in source.rejects] == ["not a La", "not JSON"]


IDS = np.zeros((H, W), np.uint8)
IDS[5:20, 5:20], IDS[20:35, 30:50], IDS[0] = 7, 11, 255


def masks(folder, *pictures, table=None, wanted=(), suffix="", rules=DEFAULT, kind=".png"):
    for number, picture in enumerate(pictures):
        photograph(folder / f"images/p{number}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        picture.save(folder / f"masks/p{number}{suffix}{kind}")
    if table:
        (folder / "table.txt").write_text(table)
    place = str(folder / "table.txt") if table else None
    return read_masks([Part(str(folder / "images"), str(folder / "masks"))], wanted, rules, place, suffix, VOC_CLASSES)[0]


def test_ids_by_a_table(tmp_path):
    source = masks(tmp_path, IDS, table="# id table\nroad, 7\nunlabelled, 11\n", suffix="_mask")
    made = source.entries[0].label()
    assert source.classes == ("background", "road") and source.entries[0].image_id == "p0"
    assert (
        (made.classes[IDS == 7] == 1).all() and (made.classes[IDS == 11] == 255).all() and (made.classes[IDS == 255] == 255).all()
    )


def test_ids_are_inferred(tmp_path):
    source = masks(tmp_path, IDS)
    assert source.classes == ("background", "id_7", "id_11") and "ids found" in source.notes[0]
    made = source.entries[0].label().classes
    assert (made[IDS == 11] == 2).all() and (made[IDS == 255] == 255).all()


def test_binary_masks_have_a_class_at_255(tmp_path):
    source = masks(tmp_path, np.where(IDS == 7, 255, 0).astype(np.uint8))
    assert source.classes == ("background", "object") and (source.entries[0].label().classes == 1).sum() == 225


def test_colours_are_vocs_or_a_table_s_or_inferred(tmp_path):
    voc = np.where(IDS == 11, 15, IDS)
    source = masks(tmp_path / "voc", VOC_PALETTE[voc])
    assert source.classes == VOC_CLASSES and np.array_equal(source.entries[0].label().classes, voc)
    paint = np.zeros((H, W, 3), np.uint8)
    paint[IDS == 7], paint[IDS == 11] = (10, 20, 30), (0, 200, 0)
    source = masks(tmp_path / "inferred", paint)
    assert source.classes == ("background", "colour_00c800", "colour_0a141e")
    source = masks(tmp_path / "table", paint, table="background:0,0,0::\ntraffic light:10,20,30::\n#00c800 sky\n")
    assert source.classes == ("background", "traffic light", "sky")
    assert (source.entries[0].label().classes[IDS == 11] == 2).all()


def test_a_paletted_mask_is_read_by_ids_or_by_the_colours_of_a_table(tmp_path):
    picture = Image.fromarray(np.where(IDS == 7, 1, 0).astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 10, 20, 30])
    source = masks(tmp_path, picture, table="road 10 20 30\nbackground 0 0 0\n")
    assert (source.entries[0].label().classes == 1).sum() == 225


def test_values_without_a_class_set_a_photograph_aside_or_are_void(tmp_path):
    source = masks(tmp_path, IDS, table="road, 7\n")
    assert "12 % of the mask has no class: id 11" in reason(source)
    source = masks(tmp_path, IDS, table="road, 7\n", rules=Rules(strange_void=True))
    assert (source.entries[0].label().classes[IDS == 11] == 255).all()


def test_masks_saved_as_jpeg_are_not_taken_for_classes(tmp_path):
    with pytest.raises(UserError, match="saved as JPEG"):
        masks(tmp_path, IDS, np.roll(IDS, 3, 1), kind=".jpg")
    with pytest.raises(UserError, match="saved as JPEG"):
        resized = np.asarray(
            Image.fromarray(np.where(IDS == 255, 0, IDS * 9)).resize((W, H), Image.Resampling.BICUBIC, (0, 0, 31, 21))
        )
        masks(tmp_path / "resized", resized)


def test_names_that_do_not_fit(tmp_path):
    masks(tmp_path, IDS, IDS)
    (tmp_path / "images/p1.jpg").rename(tmp_path / "images/q.jpg")
    source = masks(tmp_path, IDS)
    assert "1 photographs" in source.notes[0] and source.rejects[0].image_id == "p1" and len(source.entries) == 1
    (tmp_path / "images/p0.jpg").unlink()
    with pytest.raises(UserError, match=r"no mask in .* has the name of a photograph in .* \(q.jpg and p0.png, for example\)"):
        read_masks([Part(str(tmp_path / "images"), str(tmp_path / "masks"))], (), Rules(), None, "", VOC_CLASSES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road, 7\nroad\n", "line 2: 'road' is no class and value"),
        ("road, 7\nsky, 7", "line 2: the value 7 stands for two classes"),
        ("road, 7\nsky, 1 2 3", "mixes ids and colours"),
        ("void, 7\n", "names no class"),
        ("road, 300 0 0", "line 1"),
    ],
)
def test_tables_that_make_no_sense_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        read_table(text, "table.txt")


def test_a_written_table_reads_as_it_was():
    for text in ("road, 7\nvoid, 9\ntraffic light = 12\n", "64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\tVoid\n"):
        labels = read_table(text, "t")
        again = read_table(labels.table(), "t")
        assert (
            again.classes == labels.classes
            and np.array_equal(again.values, labels.values)
            and np.array_equal(again.ids, labels.ids)
        )
