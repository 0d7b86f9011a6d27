"""Label Studio's brush masks: how their images are found, the masks they give, and what is refused or rejected."""

import json

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats.label_studio import read_label_studio
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import HEIGHT, WIDTH, rejection_reason, scene_mask, write_image, write_text

SCENE = scene_mask()


def write_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def write_scene(folder, task, annotation=5, by="me@x.org", control="tag"):
    """Write the masks of crate and ball of a task."""
    for label, value in (("crate", 1), ("ball", 2)):
        name = f"task-{task}-annotation-{annotation}-by-{by}-{control}-{label}-0.png"
        write_mask(folder / name, np.where(value == SCENE, 255, 0).astype(np.uint8))


def task(number, image, control="tag"):
    result = {"from_name": control, "to_name": "image", "type": "brushlabels", "value": {"brushlabels": ["crate"]}}
    return {"id": number, "data": {"image": image}, "annotations": [{"id": 5, "result": [result]}]}


def read(folder, **rules):
    return read_label_studio([AnnotationSource(str(folder / "images"), str(folder / "masks"))], ImportOptions(**rules))


def check_scene(dataset, image_id):
    assert dataset.classes == ("background", "ball", "crate") and not dataset.rejects
    assert [entry.image_id for entry in dataset.entries] == [image_id]
    image = dataset.entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask(square=2, triangle=1))
    assert len(np.unique(image.object_mask)) == 3


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/1/0a1b2c3d-photo.jpg", "photo.jpg"),
        ("/data/upload/1/0a1b2c3d-photo.jpg", "0a1b2c3d-photo.jpg"),
        ("/data/local-files/?d=site/photo.jpg", "site/photo.jpg"),
        ("s3://bucket/a/photo%20one.jpg", "photo one.jpg"),
        ("https://example.org/a/photo.jpg?token=1", "photo.jpg"),
    ],
)
def test_the_json_export_tells_which_image_a_task_is_of(tmp_path, address, file):
    write_image(tmp_path / f"images/{file}")
    write_image(tmp_path / "images/other.jpg")
    write_scene(tmp_path / "masks", 17)
    write_text(tmp_path / "masks/project-1.json", json.dumps([task(17, address), task(18, "/data/upload/1/0a1b2c3d-other.jpg")]))
    dataset = read(tmp_path)
    check_scene(dataset, file.rpartition(".")[0].replace("/", "_"))
    assert any(note.startswith("1 images") and "have no mask" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("addresses", "files"),
    [
        (["/data/local-files/?d=site_b/1.jpg"], ["site_a/1.jpg"]),
        (["s3://bucket/site_b/1.jpg"], ["site_a/1.jpg", "site_b/2.jpg"]),
        (["/data/upload/1/0a1b2c3d-1.jpg", "/data/upload/1/4e5f6a7b-1.jpg"], ["1.jpg"]),
    ],
)
def test_an_image_of_the_same_name_is_not_taken_for_a_missing_one(tmp_path, addresses, files):
    for file in files:
        write_image(tmp_path / "images" / file)
    for number in range(len(addresses)):
        write_scene(tmp_path / "masks", number)
    write_text(tmp_path / "masks/a.json", json.dumps([task(number, each) for number, each in enumerate(addresses)]))
    dataset = read(tmp_path)
    assert not dataset.entries and len(dataset.rejects) == len(addresses)


def test_the_small_json_export_above_the_masks_will_do(tmp_path):
    write_image(tmp_path / "images/photo.jpg")
    write_scene(tmp_path / "masks", 3)
    write_text(tmp_path / "export.json", json.dumps([{"id": 3, "image": "/data/upload/1/0a1b2c3d-photo.jpg", "tag": []}]))
    check_scene(read(tmp_path), "photo")


def test_without_it_images_are_named_by_their_tasks_or_refused(tmp_path):
    write_image(tmp_path / "images/002.jpg")
    write_scene(tmp_path / "masks", 2)
    dataset = read(tmp_path)
    check_scene(dataset, "002")
    assert "there is no JSON export of the project" in dataset.notes[0]
    (tmp_path / "images/002.jpg").rename(tmp_path / "images/cat.jpg")
    with pytest.raises(UserError, match="which image belongs to task 2: put the JSON export of the project beside them"):
        read(tmp_path)


@pytest.mark.parametrize("key", ["annotations", "completions"])
def test_shapes_that_were_not_painted_are_counted(tmp_path, key):
    """Early versions of Label Studio call the annotations of a task its completions."""
    write_image(tmp_path / "images/a.jpg")
    write_scene(tmp_path / "masks", 1)
    made = task(1, "a.jpg")
    for kind, label in (("polygonlabels", "crate"), ("rectanglelabels", "cone"), ("choices", "night")):
        made["annotations"][0]["result"].append({"from_name": "tag", "type": kind, "value": {kind: [label]}})
    made[key] = made.pop("annotations")
    write_text(tmp_path / "export.json", json.dumps([made]))
    dataset = read(tmp_path)
    losses = [str(loss) for loss in dataset.entries[0].load().lost_annotations]
    reason = "is in the JSON export, but only brush masks are read"
    assert losses == [f"a polygon (crate) {reason}", f"a rectangle (cone) {reason}"] and "cone" in dataset.classes


@pytest.mark.parametrize("kind", ["brush", "polygon", "ellipse"])
def test_shapes_of_tasks_without_a_mask_are_lost(tmp_path, kind):
    write_image(tmp_path / "images/a.jpg")
    write_image(tmp_path / "images/b.jpg")
    write_scene(tmp_path / "masks", 1)
    other = task(2, "b.jpg")
    other["annotations"][0]["result"] = [
        {"from_name": "tag", "type": f"{kind}labels", "value": {f"{kind}labels": [label]}} for label in ("crate", "ball")
    ]
    write_text(tmp_path / "export.json", json.dumps([task(1, "a.jpg"), other]))
    dataset = read(tmp_path, classes=("crate",))
    ((image, _, loss),) = dataset.lost_annotations
    assert image == "task-2" and str(loss) == f"a {kind} (crate) belongs to a task without masks"


@pytest.mark.parametrize("images", [("1.jpg", "1.png"), ("1.jpg", "task-1.jpg"), ("01.jpg", "1.jpg")])
def test_two_images_of_one_task_reject_it(tmp_path, images):
    for image in images:
        write_image(tmp_path / "images" / image)
    write_scene(tmp_path / "masks", 1)
    dataset = read(tmp_path)
    assert not dataset.entries and f"task 1 has 2 images, {' and '.join(sorted(images))}" in dataset.rejects[0].reason


def test_soft_edges_of_strokes_are_cut_in_the_middle(tmp_path):
    write_image(tmp_path / "images/1.jpg")
    ramp = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    write_mask(tmp_path / "masks/task-1-annotation-1-by-1-tag-crate-0.png", ramp)
    assert read(tmp_path).entries[0].load().class_mask.sum() == HEIGHT * WIDTH / 2


def test_two_annotations_of_a_task_and_other_files_are_rejected(tmp_path):
    write_image(tmp_path / "images/1.jpg")
    write_scene(tmp_path / "masks", 1)
    write_scene(tmp_path / "masks", 1, annotation=6)
    write_mask(tmp_path / "masks/mine.png", SCENE)
    reasons = [reject.reason for reject in read(tmp_path).rejects]
    assert "task 1 has 2 annotations: keep one" in reasons and any("Label Studio's form" in r for r in reasons)


def test_two_tasks_of_one_image_are_rejected(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    write_scene(tmp_path / "masks", 1)
    write_scene(tmp_path / "masks", 2)
    write_text(tmp_path / "export.json", json.dumps([task(1, "a.jpg"), task(2, "a.jpg")]))
    dataset = read(tmp_path)
    assert not dataset.entries and [each.reason for each in dataset.rejects] == [
        f"a.jpg, the image of task {n}, is also that of another task" for n in (1, 2)
    ]


def test_two_tasks_of_one_id_are_rejected_and_the_shapes_of_both_are_lost(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    write_image(tmp_path / "images/b.jpg")
    write_scene(tmp_path / "masks", 1)
    polygon = {"from_name": "tag", "type": "polygonlabels", "value": {"polygonlabels": ["crate"]}}
    others = [{**task(2, image), "annotations": [{"result": [polygon]}]} for image in ("a.jpg", "b.jpg")]
    write_text(tmp_path / "export.json", json.dumps([task(1, "a.jpg"), task(1, "b.jpg"), *others]))
    dataset = read(tmp_path)
    assert not dataset.entries and dataset.rejects[0].reason.startswith("2 tasks of the export have the id 1")
    assert [image for image, *_ in dataset.lost_annotations] == ["task-2", "task-2"]


def test_masks_of_another_size_reject_their_image(tmp_path):
    write_image(tmp_path / "images/1.jpg")
    write_mask(tmp_path / "masks/task-1-annotation-1-by-1-tag-crate-0.png", SCENE[:-3])
    assert "60×40" in rejection_reason(read(tmp_path))


def test_a_folder_without_masks_is_refused(tmp_path):
    write_image(tmp_path / "images/1.jpg")
    write_image(tmp_path / "masks/1.jpg")
    with pytest.raises(UserError, match="export the project from Label Studio as `Brush labels to PNG`"):
        read(tmp_path)
    write_scene(tmp_path / "masks", 1)
    for name in ("one", "two"):
        write_text(tmp_path / f"masks/{name}.json", json.dumps([task(1, "1.jpg")]))
    with pytest.raises(UserError, match="are both exports of a Label Studio project: keep one"):
        read(tmp_path)


@pytest.mark.parametrize(
    "annotations", [7, True, [7], [{"result": 7}], [{"result": ["x", None]}], [{"result": [{"from_name": []}]}]]
)
def test_malformed_results_of_a_task_are_left_out(tmp_path, annotations):
    write_image(tmp_path / "images/photo.jpg")
    write_scene(tmp_path / "masks", 3)
    address = {"image": "/data/upload/1/0a1b2c3d-photo.jpg"}
    write_text(tmp_path / "masks/a.json", json.dumps([{"id": 3, "data": address, "annotations": annotations}]))
    check_scene(read(tmp_path), "photo")


@pytest.mark.parametrize("by", ["7", "", "jean-luc@x.org"])
@pytest.mark.parametrize("control", ["tag", "my-tag"])
def test_annotators_and_controls_may_have_hyphens(tmp_path, by, control):
    write_image(tmp_path / "images/photo.jpg")
    write_scene(tmp_path / "masks", 17, by=by, control=control)
    write_text(tmp_path / "masks/project.json", json.dumps([task(17, "photo.jpg", control)]))
    check_scene(read(tmp_path), "photo")


def test_without_the_export_the_annotator_ends_at_the_first_hyphen(tmp_path):
    write_image(tmp_path / "images/17.jpg")
    write_scene(tmp_path / "masks", 17, by="7")
    check_scene(read(tmp_path), "17")
