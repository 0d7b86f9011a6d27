"""Small random data sets in the dialects of several tools: the masks that are imported are the truth."""

import base64
import io
import json
import zlib
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets import formats
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportRules
from tests.deconvnet.datasets.formats.inputs import write_image, write_text

CLASSES = ("crate", "größe & co", "ball-2")
Box = tuple[int, int, int, int]


class Scene:
    """An image and its objects, rectangles that lie on each other as they come or the small over the large."""

    def __init__(self, rng: np.random.Generator, name: str) -> None:
        self.name, self.rng = name, rng
        self.size = [(24, 18), (18, 24), (20, 20)][rng.integers(3)]
        self.objects: list[tuple[str, Box]] = []
        for _ in range(rng.integers(0, 4)):
            (x0, x1), (y0, y1) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in self.size)
            self.objects.append((CLASSES[rng.integers(len(CLASSES))], (x0, y0, x1, y1)))

    def corners(self, box: Box) -> list[list[float]]:
        """The corners of a rectangle, from any of them on and in any direction."""
        x0, y0, x1, y1 = box
        corners = np.roll([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], self.rng.integers(4), axis=0)
        return corners[:: self.rng.choice([1, -1])].astype(float).tolist()

    def mask(self, box: Box) -> np.ndarray:
        mask = np.zeros(self.size[::-1], bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        return mask

    def truth(self, classes: tuple[str, ...], in_order: bool = False) -> np.ndarray:
        truth = np.zeros(self.size[::-1], np.uint8)
        area = {id(each): int(self.mask(each[1]).sum()) for each in self.objects}
        for label, box in self.objects if in_order else sorted(self.objects, key=lambda each: -area[id(each)]):
            truth[self.mask(box)] = classes.index(label)
        return truth


def runs(mask: np.ndarray) -> list[int]:
    """The run lengths of a mask: of background and object in turn."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(), [False]]).astype(int)))
    return np.diff([0, *edges, mask.size]).tolist()


def write_yolo(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    images, labels = [("images", "labels"), ("train/images", "train/labels"), ("images/train", "labels/train"), ("", "")][
        rng.integers(4)
    ]
    newline, digits = rng.choice(["\n", "\r\n"]), rng.choice([6, 8, 17])
    for scene in scenes:
        write_image(folder / images / f"{scene.name}.jpg", scene.size)
        points = [(CLASSES.index(label), np.array(scene.corners(box)) / scene.size) for label, box in scene.objects]
        lines = [f"{number} " + " ".join(f"{v:.{digits}f}" for v in outline.ravel()) + newline for number, outline in points]
        if lines or rng.integers(2) or scene is scenes[0]:
            write_text(folder / labels / f"{scene.name}.txt", "".join(dict.fromkeys(lines)))
    if rng.integers(2):
        write_text(folder / "classes.txt", newline.join(CLASSES))
    else:
        write_text(folder / "data.yaml", json.dumps({"names": CLASSES if rng.integers(2) else dict(enumerate(CLASSES))}))
    return AnnotationSource(str(folder), str(folder))


def write_cvat(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    text = f"<annotations><version>1.1</version><meta><{(job := rng.choice(['job', 'task', 'project']))}><labels>"
    text += "".join(f"<label><name>{name.replace('&', '&amp;')}</name></label>" for name in CLASSES) + f"</labels></{job}></meta>"
    for scene in scenes:
        write_image(folder / f"images/sub/{scene.name}.jpg", scene.size)
        text += f'<image name={quoteattr(f"sub/{scene.name}.jpg")} width="{scene.size[0]}" height="{scene.size[1]}">'
        shapes = []
        for z, (label, box) in enumerate(scene.objects):
            (x0, y0, x1, y1), kind = box, rng.choice(["polygon", "mask", "box"])
            place = f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}" rle="0, {(x1 - x0) * (y1 - y0)}"'
            shape = {
                "polygon": 'points="' + ";".join(f"{x:.2f},{y:.2f}" for x, y in scene.corners(box)) + '"',
                "mask": place,
                "box": f'xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"',
            }[kind]
            shapes.append(f'<{kind} label={quoteattr(label)} z_order="{z + 1}" {shape}></{kind}>')
        text += "".join(rng.permutation(shapes)) + '<tag label="crate"/></image>'
    write_text(folder / "annotations.xml", text + "</annotations>")
    return AnnotationSource(str(folder / "images"), str(folder / "annotations.xml"))


def write_supervisely(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    for number, scene in enumerate(scenes):
        write_image(folder / f"ds{number % 2}/img/{scene.name}.jpg", scene.size)
        objects = []
        for label, box in scene.objects:
            kind = rng.choice(["polygon", "bitmap", "rectangle"])
            figure = {"classTitle": label, "geometryType": kind}
            if kind == "bitmap":
                Image.fromarray(np.ones((box[3] - box[1], box[2] - box[0]), bool)).save(png := io.BytesIO(), "PNG")
                figure["bitmap"] = {"data": base64.b64encode(zlib.compress(png.getvalue())).decode(), "origin": box[:2]}
            else:
                outline = scene.corners(box) if kind == "polygon" else [box[:2], box[2:]]
                figure["points"] = {"exterior": outline, "interior": []}
            objects.append(figure)
        size = {"height": scene.size[1], "width": scene.size[0]}
        document = json.dumps({"size": size, "objects": objects}, ensure_ascii=bool(rng.integers(2)))
        write_text(folder / f"ds{number % 2}/ann/{scene.name}{rng.choice(['.jpg', ''])}.json", document)
    write_text(folder / "meta.json", json.dumps({"classes": [{"title": name} for name in CLASSES]}))
    return AnnotationSource(str(folder), str(folder))


def write_kaggle(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    column = rng.choice(["EncodedPixels", "annotation"])
    lines, suffix = [], rng.choice([".jpg", ""])
    for scene in scenes:
        write_image(folder / f"images/{scene.name}.jpg", scene.size)
        for label, box in scene.objects or [("crate", (0, 0, 0, 0))]:
            mask = scene.mask(box)
            lengths = runs(mask.T if column == "EncodedPixels" else mask)
            starts = np.cumsum([0, *lengths])[1::2][: len(lengths) // 2] + 1
            text = (
                " ".join(f"{start} {length}" for start, length in zip(starts, lengths[1::2], strict=True)) if mask.any() else ""
            )
            lines.append(f"{scene.name}{suffix},{label},{text}\n")
    write_text(folder / "t.csv", f"ImageId,class,{column}\n" + "".join(lines))
    return AnnotationSource(str(folder / "images"), str(folder / "t.csv"))


def write_label_studio(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    tasks = []
    for number, scene in enumerate(scenes, start=7):
        write_image(folder / f"images/{scene.name}.jpg", scene.size)
        tasks.append({"id": number, "data": {"image": f"/data/upload/2/0123abcd-{scene.name}.jpg"}, "annotations": []})
        for i, (label, box) in enumerate(scene.objects):
            (folder / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(scene.mask(box).astype(np.uint8) * 255)
            mask.save(folder / f"masks/task-{number}-annotation-1-by-1-tag-{label}-{i}.png")
    write_text(folder / "masks/project.json", json.dumps(tasks))
    return AnnotationSource(str(folder / "images"), str(folder / "masks"))


WRITERS = {
    "yolo": write_yolo,
    "cvat": write_cvat,
    "supervisely": write_supervisely,
    "kaggle": write_kaggle,
    "label_studio": write_label_studio,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("seed", range(5))
def test_imported_masks_are_the_truth(tmp_path, name, seed):
    rng = np.random.default_rng(seed)
    scenes = [Scene(rng, f"Bild ä {i}") for i in range(5)]
    while not scenes[0].objects:
        scenes[0] = Scene(rng, scenes[0].name)
    source = WRITERS[name](scenes, tmp_path, rng)
    dataset = formats.get_format(name).read([source], ImportRules(boxes_void=False))
    assert not dataset.rejects
    loaded = {entry.image_id.rpartition("_")[2]: entry.load() for entry in dataset.entries}
    in_layers = name == "cvat" and any("z_order" in note for note in dataset.notes)
    assert set(loaded) == {scene.name for scene in scenes if scene.objects or name != "label_studio"}
    for scene in scenes:
        if scene.name in loaded:
            np.testing.assert_array_equal(loaded[scene.name].class_mask, scene.truth(dataset.classes, in_layers))
