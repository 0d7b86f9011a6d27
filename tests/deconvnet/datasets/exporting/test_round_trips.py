"""Every format: exported, read back by our importers, the same masks; and what other tools read of the files."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from deconvnet.datasets import voc
from deconvnet.datasets.exporting import FORMAT_NAMES, ExportOptions, get_format
from deconvnet.datasets.exporting.export_writer import write_export
from deconvnet.datasets.formats import get_format as get_reader
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions, image_id_of
from deconvnet.datasets.palette import VOC_PALETTE
from infra.errors import UserError
from tests.deconvnet.datasets.exporting.scenes import CLASSES, HEIGHT, NAMES, WIDTH, export, scene_mask, write_prediction

CASES = [("coco", "polygons"), ("coco", "masks"), ("cvat", "polygons"), ("cvat", "masks"), ("labelme", "polygons")]
CASES += [("labelme", "masks"), ("labelstudio", "polygons"), ("labelstudio", "masks"), ("yolo", "polygons"), ("voc", "masks")]
URL = "/data/local-files/?d=images/"


def accept(tasks):
    """Make the predictions of Label Studio's tasks annotations, and number the tasks, as Label Studio does on Submit."""
    content = json.loads(tasks.read_text("utf-8"))
    for number, task in enumerate(content, start=7):
        task |= {"id": number, "annotations": [{"id": 5, "result": task["predictions"][0]["result"]}]}
    tasks.write_text(json.dumps(content), "utf-8")


def read_back(folder, name, classes=CLASSES[1:]):
    """The masks that our importer reads of an export, by image id."""
    readers = {"labelstudio": "label_studio", "voc": "masks"}
    if name == "labelstudio":
        accept(folder / "tasks.json")
    images = folder / ("JPEGImages" if name == "voc" else "images")
    source = AnnotationSource(str(images), str(folder / get_format(name).annotations))
    dataset = get_reader(readers.get(name, name)).read([source], ImportOptions(classes=() if name == "voc" else classes))
    assert dataset.classes == ("background", *classes) and not dataset.rejects
    masks = {entry.image_id: entry.load() for entry in dataset.entries}
    assert not any(image.lost_annotations for image in masks.values())
    return {name: image.class_mask for name, image in masks.items()}


def test_all_formats_are_tried():
    assert {name for name, _ in CASES} == set(FORMAT_NAMES)


@pytest.mark.parametrize(("name", "shapes"), CASES)
def test_what_is_exported_comes_back_by_the_importer(tmp_path, name, shapes):
    folder, summary = export(tmp_path, name, shapes=shapes, image_url=URL)
    back = read_back(folder, name)
    assert set(back) == {image_id_of(each) for each in NAMES} and summary.images == 2 and summary.objects == 16
    for seed, each in enumerate(NAMES):
        same = (back[image_id_of(each)] == scene_mask(seed)).mean()
        assert same == 1 if shapes == "masks" else same >= 0.99
        assert 1 > same >= summary.worst[0] - 0.001 if shapes == "polygons" else summary.worst[0] == 1
    images = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".jpg", ".png")]
    if name != "voc":
        assert sorted(str(path) for path in images) == [f"images/{each}" for each in NAMES]
        assert (folder / "images/a.jpg").read_bytes() == (tmp_path / "photos/a.jpg").read_bytes()


@pytest.mark.parametrize("name", sorted({name for name, shapes in CASES if shapes == "polygons"}))
def test_polygons_without_tolerance_come_back_exactly(tmp_path, name):
    folder, _ = export(tmp_path, name, tolerance=0)
    for seed, mask in enumerate(read_back(folder, name).values()):
        np.testing.assert_array_equal(mask, scene_mask(seed))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_an_image_without_objects_and_a_class_without_any_come_back(tmp_path, name):
    crates = np.where(scene_mask() == 2, 2, 0).astype(np.uint8)
    masks = {"a.jpg": crates, "empty.jpg": np.zeros((HEIGHT, WIDTH), np.uint8)}
    folder, summary = export(tmp_path, name, masks, tolerance=0, shapes="masks" if name == "voc" else "polygons")
    assert summary.images == 2
    back = read_back(folder, name)
    np.testing.assert_array_equal(back["a"], crates)
    assert not back["empty"].any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with NumPy 2
@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_pycocotools_reads_coco(tmp_path, shapes):
    folder, _ = export(tmp_path, "coco", shapes=shapes)
    coco = COCO(str(folder / "annotations/instances_default.json"))
    assert [coco.cats[number]["name"] for number in (1, 2, 3)] == list(CLASSES[1:])
    for image_id, expected in ((1, scene_mask(0)), (2, scene_mask(1))):
        assert coco.imgs[image_id]["file_name"] == NAMES[image_id - 1]
        found = np.zeros_like(expected)
        annotations = coco.imgToAnns[image_id]
        for annotation in sorted(annotations, key=lambda each: -each["area"]):
            pixels = coco.annToMask(annotation) > 0
            found[pixels] = annotation["category_id"]
            y, x = np.nonzero((expected == annotation["category_id"]) & pixels)
            x0, y0, width, height = annotation["bbox"]
            assert (x >= x0).all() and (y >= y0).all() and (x < x0 + width).all() and (y < y0 + height).all()
        assert (found == expected).mean() >= (1 if shapes == "masks" else 0.99)
        of_image = 0.75 if image_id == 1 else 0.625
        assert all(each["score"] == of_image + each["category_id"] / 16 for each in annotations)
    assert sorted(each for each in coco.anns) == list(range(1, 17))


def test_cvats_set_up_has_the_labels_with_the_attribute_that_the_shapes_have(tmp_path):
    folder, _ = export(tmp_path, "cvat")
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    labels = json.loads((folder / "labels.json").read_text())
    assert [each["name"] for each in labels] == list(CLASSES[1:]) == [e.text for e in root.findall("meta/task/labels/label/name")]
    assert [each["color"] for each in labels] == ["#{:02x}{:02x}{:02x}".format(*VOC_PALETTE[i]) for i in (1, 2, 3)]
    assert {each["attributes"][0]["name"] for each in labels} == {"score"}
    assert [image.get("id") for image in root.iter("image")] == ["0", "1"]
    shapes = root.findall("image/polygon")
    scores = {(shape.get("label"), float(shape.find("attribute[@name='score']").text)) for shape in shapes}
    assert scores == {(CLASSES[i], round(of_image + i / 16, 3)) for of_image in (0.75, 0.625) for i in (1, 2, 3)}
    assert {shape.get("source") for shape in shapes} == {"auto"}


def test_label_studios_tasks_fit_the_set_up(tmp_path):
    for shapes, tag in (("polygons", "PolygonLabels"), ("masks", "BrushLabels")):
        (tmp_path / shapes).mkdir()
        folder, _ = export(tmp_path / shapes, "labelstudio", shapes=shapes, image_url="https://h/photos/")
        view = ElementTree.parse(folder / "label_config.xml").getroot()
        control = view.find(tag)
        tasks = json.loads((folder / "tasks.json").read_text())
        assert [task["data"]["image"] for task in tasks] == ["https://h/photos/a.jpg", "https://h/photos/site%202/b.png"]
        assert view.find("Image").get("value") == "$image"
        assert [label.get("value") for label in control] == list(CLASSES[1:])
        for task, score in zip(tasks, (0.75, 0.625), strict=True):
            [prediction] = task["predictions"]
            assert prediction["model_version"] == "models:/edeconvnet/3" and prediction["score"] == score
            for result in prediction["result"]:
                assert (result["from_name"], result["to_name"]) == (control.get("name"), view.find("Image").get("name"))
                assert result["type"] == tag.lower() and (result["original_width"], result["original_height"]) == (WIDTH, HEIGHT)
                (label,) = result["value"][tag.lower()]
                assert label in CLASSES[1:] and result["score"] == score + CLASSES.index(label) / 16


def test_label_studios_predictions_are_not_imported_before_they_are_accepted(tmp_path):
    folder, _ = export(tmp_path, "labelstudio")
    source = AnnotationSource(str(folder / "images"), str(folder / "tasks.json"))
    with pytest.raises(UserError, match="predictions are not read before someone has accepted them"):
        get_reader("label_studio").read([source], ImportOptions())


def test_labelme_finds_the_image_beside_its_file_and_the_labels_that_mean_void_and_background(tmp_path):
    folder, _ = export(tmp_path, "labelme")
    document = json.loads((folder / "images/site 2/b.json").read_text())
    assert document["imagePath"] == "b.png" and (document["imageWidth"], document["imageHeight"]) == (WIDTH, HEIGHT)
    assert {(shape["label"], shape["score"]) for shape in document["shapes"]} == {(CLASSES[i], 0.625 + i / 16) for i in (1, 2, 3)}
    assert (folder / "labels.txt").read_text().splitlines() == ["__ignore__", "_background_", *CLASSES[1:]]


def test_yolo_counts_classes_from_0_and_has_scores_in_a_table(tmp_path):
    folder, _ = export(tmp_path, "yolo")
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == dict(enumerate(CLASSES[1:]))
    lines = (folder / "labels/site 2/b.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines].count("0") == 2 and len(lines) == 8
    assert (folder / "scores.csv").read_text().splitlines() == ["image,score", "a.jpg,0.7500", "site 2/b.png,0.6250"]


def test_a_scene_without_background_comes_back_with_an_empty_background(tmp_path):
    classes = ("sky", "road", "car", "sign")
    for number, name in enumerate(("yolo", "voc")):
        (place := tmp_path / name).mkdir()
        prediction = write_prediction(place, "a.jpg", scene_mask(), classes=classes)
        (to := place / "to").mkdir()
        rules = ExportOptions(classes, background=False, tolerance=0, shapes=("polygons", "masks")[number])
        assert write_export([prediction], [], get_format(name), rules, to, 1).worst[0] == 1
        images = to / ("images", "JPEGImages")[number]
        source = AnnotationSource(str(images), str(to / get_format(name).annotations))
        chosen = (ImportOptions(classes=classes), ImportOptions(background="none"))[number]
        dataset = get_reader(("yolo", "masks")[number]).read([source], chosen)
        assert dataset.classes == ("background", *classes)
        np.testing.assert_array_equal(dataset.entries[0].load().class_mask, scene_mask() + 1)


@pytest.mark.parametrize(("name", "file"), [("cvat", "labels.json"), ("labelstudio", "label_config.xml")])
def test_without_a_background_no_label_is_black(name, file):
    rules = ExportOptions(("sky", "road"), background=False)
    text = get_format(name).dataset_files([], rules)[file].decode()
    assert re.findall("#[0-9a-f]{6}", text) == ["#{:02x}{:02x}{:02x}".format(*VOC_PALETTE[i]) for i in (1, 2)]


def test_voc_is_a_folder_that_the_pipeline_reads(tmp_path):
    folder, _ = export(tmp_path, "voc", shapes="masks")
    assert voc.read_split(str(folder), "train") == ["a", "site 2_b"]
    assert (folder / "classes.txt").read_text().splitlines() == list(CLASSES)
    mask = Image.open(folder / "SegmentationClass/site 2_b.png")
    assert mask.mode == "P" and mask.getpalette()[:12] == VOC_PALETTE[:4].ravel().tolist()
    np.testing.assert_array_equal(np.asarray(mask), scene_mask(1))
    assert "ring:128,0,0::" in (folder / "labelmap.txt").read_text().splitlines()
    assert (folder / "JPEGImages/site 2_b.png").is_file()
