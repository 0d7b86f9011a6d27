"""LabelMe files: the masks they give, and what is refused, rejected or skipped."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats import labelme
from deconvnet.datasets.formats.labelme import read_labelme
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from deconvnet.datasets.validation.lossy_masks import is_lossy
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image
from tests.deconvnet.datasets.formats.inputs import HEIGHT, WIDTH, rejection_reason, write_image


def read(folder, shapes, rules=ImportOptions(), file_encoding="utf-8", **document):  # noqa: B008
    """The data set of a folder with one LabelMe file, a.json, that has these shapes."""
    folder.mkdir(exist_ok=True)
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageData": None, "imageWidth": WIDTH, "imageHeight": HEIGHT, **document}
    (folder / "a.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(file_encoding))
    return read_labelme([AnnotationSource(str(folder), str(folder))], rules)


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points, **more}


TRIANGLE = [shape("cat", "polygon", [[1, 1], [9, 1], [9, 9]])]


def test_shapes_of_all_types_become_masks(tmp_path):
    write_image(tmp_path / "a.jpg")
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
    dataset = read(tmp_path, shapes)
    image = dataset.entries[0].load()
    classes, objects = image.class_mask, image.object_mask
    assert dataset.classes == ("background", "cat", "dog", "nose")
    assert (classes == 1).sum() == 400 - 25 + 50 + 20 and (classes == 255).sum() == 25
    assert classes[30, 50] == 2 and classes[35, 3] == 2 and (classes == 2).sum() == 24 + 52
    assert objects[2, 45] == objects[2, 54] != objects[25, 25]
    assert [f"{loss.name}: {loss.reason}" for loss in image.lost_annotations] == [
        "shape 8: is a point, which covers no area",
        "shape 9: covers no pixel",
    ]


def test_shapes_of_one_group_but_of_two_labels_are_two_objects(tmp_path):
    write_image(tmp_path / "a.jpg")
    cat, dog = (np.add([[1, 1], [9, 1], [9, 9]], n).tolist() for n in (0, 10))
    image = read(tmp_path, [shape("cat", "polygon", cat, group_id=4), shape("dog", "polygon", dog, group_id=4)]).entries[0].load()
    assert image.class_mask[2, 7] == 1 and image.class_mask[12, 17] == 2 and set(np.unique(image.object_mask)) == {0, 1, 2}


def test_images_are_found_by_path_or_by_name_or_embedded(tmp_path):
    folder = tmp_path / "json"
    with pytest.raises(BadInput, match=r"no image a\.jpg"):
        read(folder, TRIANGLE).entries[0].load()
    write_image(tmp_path / "b.jpg")
    data = base64.b64encode((tmp_path / "b.jpg").read_bytes()).decode()
    image = read(folder, TRIANGLE, imageData=data, imagePath="../b.jpg").entries[0].load()
    # ../b.jpg is outside the folder of images and is not opened: the embedded image is used.
    assert image.image == (tmp_path / "b.jpg").read_bytes() and image.suffix == ".jpg"
    write_image(folder / "b.jpg", size=(WIDTH, HEIGHT - 10))
    with pytest.raises(BadInput, match="are for 60×40, the image is 60×30"):
        read(folder, TRIANGLE, imagePath="..\\x\\b.jpg").entries[0].load()
    with pytest.raises(BadInput, match="imageData"):
        read(folder, TRIANGLE, imageData="AAAA", imagePath="c.jpg").entries[0].load()


def encoded(pixels, form, **options):
    """An image file of these pixels in base64."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return base64.b64encode(sink.getvalue()).decode()


def scene(seed):
    """An image of one rectangle on grey noise, WIDTH by HEIGHT."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    x, y = rng.integers(0, WIDTH - 20), rng.integers(0, HEIGHT - 15)
    pixels[y : y + 15, x : x + 20] = (200, 30, 30)
    return pixels


def write_session(folder, name, pixels, embed, path):
    """Write a LabelMe file in a folder, with an embedded image or without."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    content = {"shapes": TRIANGLE, "imagePath": path, "imageData": encoded(pixels, "PNG") if embed else None}
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("images", "names", "path"),
    [
        (["s1/1.jpg"], ["s1/1.json", "s2/1.json"], "1.jpg"),  # the second session has no image file
        (["s1/1.jpg"], ["s2/1.json", "s3/1.json"], "1.jpg"),
        (["1.jpg"], ["s1/1.json", "s2/1.json"], "1.jpg"),  # one folder of images for all sessions
        (["1.jpg"], ["a.json", "b.json"], "1.jpg"),
        (["1.jpg", "s2/x.jpg"], ["s1/1.json", "s2/1.json"], "..\\s2\\1.jpg"),
        (["s2/1.jpg"], ["s1/1.json", "s2/1.json"], "C:\\photos\\1.jpg"),
    ],
)
def test_the_embedded_image_tells_sessions_with_the_same_file_names_apart(tmp_path, images, names, path):
    scenes = [scene(n) for n in range(len(names))]
    for image in images:
        (tmp_path / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[0]).save(tmp_path / "images" / image, quality=70)
    for name, pixels in zip(names, scenes, strict=True):
        write_session(tmp_path / "json", name, pixels, True, path)
    dataset = read_labelme([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "json"))], ImportOptions())
    for entry, pixels in zip(dataset.entries, scenes, strict=True):
        found = decode_image(entry.load().image).astype(int)
        assert np.abs(found - pixels).mean() < 12, entry.image_id


@pytest.mark.parametrize("path", ["../images/1.jpg", "..\\images\\1.jpg", "./../images/1.jpg"])
@pytest.mark.parametrize("embed", [(False, False), (True, False), (True, True)])
def test_two_files_of_one_image_are_rejected(tmp_path, path, embed):
    (tmp_path / "images").mkdir()
    Image.fromarray(scene(0)).save(tmp_path / "images/1.jpg", quality=70)
    for name, shown, at in zip(("1.json", "other.json"), embed, (path, "../images/1.jpg"), strict=True):
        write_session(tmp_path / "json", name, scene(0), shown, at)
    dataset = read_labelme([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "json"))], ImportOptions())
    for entry, other in zip(dataset.entries, ("other.json", "1.json"), strict=True):
        with pytest.raises(BadInput, match=rf"its image, 1.jpg, is also that of .*json/{other}: put all shapes into one file"):
            entry.load()


@pytest.mark.parametrize("embed", [(True, True), (False, True)])
def test_a_file_with_another_image_embedded_does_not_compete(tmp_path, embed):
    (tmp_path / "images").mkdir()
    Image.fromarray(scene(0)).save(tmp_path / "images/1.jpg", quality=70)
    for number, name in enumerate(("1.json", "other.json")):
        write_session(tmp_path / "json", name, scene(number), embed[number], "../images/1.jpg")
    dataset = read_labelme([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "json"))], ImportOptions())
    for number, entry in enumerate(dataset.entries):
        assert np.abs(decode_image(entry.load().image).astype(int) - scene(number)).mean() < 12


def test_an_image_that_is_taken_from_the_json_although_it_has_a_file_is_reported(tmp_path):
    """The file may be the one to use: a photo from which faces were removed after it was annotated."""
    Image.fromarray(scene(1)).save(tmp_path / "a.png")
    Image.fromarray(scene(2)).save(tmp_path / "b.png")
    for name, embedded in {"a": scene(1), "b": scene(3), "c": scene(4)}.items():
        write_session(tmp_path, f"{name}.json", embedded, True, f"{name}.png")
    dataset = read_labelme([AnnotationSource(str(tmp_path), str(tmp_path))], ImportOptions())
    remark = "was taken from its JSON file (imageData), because its image file shows another image"
    assert {entry.image_id: entry.load().remark for entry in dataset.entries} == {"a": "", "b": remark, "c": ""}


def test_an_embedded_image_at_which_pillow_fails_is_damaged(tmp_path):
    """Pillow fails with an AttributeError. It takes a header of numbers for that of an electron microscope (SPIDER)."""
    sink = io.BytesIO()
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(sink, "SPIDER")
    header = bytearray(sink.getvalue())
    header[104:108] = np.float32(1).tobytes()  # number of an image in a file of several
    dataset = read(tmp_path, TRIANGLE, imageData=base64.b64encode(header).decode())
    assert rejection_reason(dataset) == "the embedded image (imageData) is damaged" and not is_lossy(bytes(header))


def test_the_image_file_is_used_if_it_shows_what_is_embedded(tmp_path):
    """The embedded image was turned upright and compressed again."""
    pixels = scene(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "a.jpg", quality=95, exif=exif)
    dataset = read(tmp_path, TRIANGLE, imageData=encoded(pixels, "JPEG", quality=60))
    assert dataset.entries[0].load().image == (tmp_path / "a.jpg").read_bytes()
    dataset = read(tmp_path, TRIANGLE, imageData=base64.b64encode(b"damaged").decode())
    assert dataset.entries[0].load().image == (tmp_path / "a.jpg").read_bytes()


def test_a_session_without_image_files_takes_no_file_of_another_session(tmp_path):
    write_image(tmp_path / "images/s1/1.jpg")
    for name in ("s1/1.json", "s2/1.json"):
        write_session(tmp_path / "json", name, scene(1), False, "1.jpg")
    dataset = read_labelme([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "json"))], ImportOptions())
    dataset.entries[0].load()
    with pytest.raises(BadInput, match=r"no image 1\.jpg below .*, and none is embedded"):
        dataset.entries[1].load()


def test_images_are_found_beside_the_annotations_folder_by_folder(tmp_path):
    """imagePath names the folder that the images were in."""
    for session in ("s1", "s2"):
        write_image(tmp_path / "images" / session / "1.jpg")
        write_session(tmp_path / "json", f"{session}/1.json", scene(1), False, "../photos/1.jpg")
    dataset = read_labelme([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "json"))], ImportOptions())
    assert [entry.load().suffix for entry in dataset.entries] == [".jpg", ".jpg"]


@pytest.mark.parametrize("kinds", [["linestrip"], ["point", "line"], ["points", "points"]])
def test_a_folder_without_any_area_is_refused(tmp_path, kinds):
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=f"no shape has an area, all are of the type {sorted(kinds)[0]}"):
        read(tmp_path, [shape("crack", kind, [[1, 1], [20, 20], [30, 5]]) for kind in kinds])


@pytest.mark.parametrize(
    ("malformed", "words"),
    [
        (shape("cat", "spline", [[1, 2]]), "the shape type spline is not supported"),
        (shape("", "polygon", [[1, 2]]), "shape 2 has no label"),
        (shape("cat", "circle", [[1, 2]]), "a circle has 2 points, this one 1"),
        (shape("cat", "polygon", "here"), "not numbers"),
        (shape("cat", "mask", [[1, 1]], mask="!"), "shape 2 (cat): "),
    ],
)
def test_a_malformed_shape_rejects_its_image(tmp_path, malformed, words):
    write_image(tmp_path / "a.jpg")
    assert words in rejection_reason(read(tmp_path, [shape("cat", "rectangle", [[1, 1], [9, 9]]), malformed]))


def test_a_mask_larger_than_any_image_rejects_its_image(tmp_path, monkeypatch):
    write_image(tmp_path / "a.jpg")
    mask = shape("cat", "mask", [[2, 4], [7, 7]], mask=encoded(np.ones((4, 6), np.uint8), "PNG"))
    dataset = read(tmp_path, [mask])
    dataset.entries[0].load()
    monkeypatch.setattr(labelme, "_MAX_MASK_PIXELS", 20)
    assert rejection_reason(dataset) == "shape 1 (cat): 6×4 is larger than 20 pixels"


def test_other_json_files_are_rejected(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "coco.json").write_text('{"images": []}')
    (tmp_path / "cut.json").write_text('{"shapes": [')
    dataset = read(tmp_path, [shape("cat", "rectangle", [[1, 1], [9, 9]])])
    assert len(dataset.entries) == 1
    assert [reject.reason[:8] for reject in dataset.rejects] == ["not a La", "not JSON"]


@pytest.mark.parametrize(("encoding", "label"), [("gbk", "裂缝"), ("shift_jis", "ひび"), ("cp1252", "arbre à cames")])
def test_files_in_other_encodings_are_read_by_its_name_or_refused_by_theirs(tmp_path, encoding, label):
    write_image(tmp_path / "a.jpg")
    shapes = [shape(label, "rectangle", [[1, 1], [9, 9]])]
    with pytest.raises(UserError, match=r"none of the 1 \.json files can be used; .*a\.json: byte \d+ .*--encoding"):
        read(tmp_path, shapes, file_encoding=encoding)
    dataset = read(tmp_path, shapes, ImportOptions(encoding=encoding), encoding)
    assert dataset.classes == ("background", label) and (dataset.entries[0].load().class_mask == 1).sum() == 64


@pytest.mark.parametrize("kind", ["rotation", "quadrilateral", "oriented_rectangle", "rectangle", "polygon"])
def test_four_corners_of_any_type_make_the_same_mask(tmp_path, kind):
    write_image(tmp_path / "a.jpg")
    corners = [[20, 5], [40, 15], [30, 35], [10, 25]]
    mask = read(tmp_path, [shape("cat", kind, corners, direction=0.46)]).entries[0].load().class_mask
    assert mask.sum() == 500 and mask[20, 25] == 1 and mask[6, 11] == 0


@pytest.mark.parametrize(
    ("images", "embedded", "used"),
    [
        (["a.jpg", "old.jpg"], False, None),  # renamed together, and imagePath left as it was
        (["a.png", "old.jpg"], False, None),
        (["a.JPG", "old.jpg"], False, None),
        (["old.jpg"], False, "old.jpg"),
        (["b.jpg", "old.jpg"], False, "old.jpg"),
        (["a.jpg", "old.jpg"], True, "old.jpg"),
    ],
)
def test_an_image_of_the_files_own_name_beside_that_of_image_path_is_ambiguous(tmp_path, images, embedded, used):
    for name in images:
        write_image(tmp_path / name)
    data = base64.b64encode((tmp_path / "old.jpg").read_bytes()).decode() if embedded else None
    entry = read(tmp_path, TRIANGLE, imagePath="old.jpg", imageData=data).entries[0]
    if used is None:
        with pytest.raises(BadInput, match=rf"its imagePath is old.jpg, but its name fits {images[0]}: correct imagePath"):
            entry.load()
    else:
        np.testing.assert_array_equal(decode_image(entry.load().image), decode_image((tmp_path / used).read_bytes()))
