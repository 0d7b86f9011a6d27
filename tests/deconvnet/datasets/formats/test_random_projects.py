"""Small random data sets in the dialects of several tools: the masks that are imported are those of another rasteriser."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets import formats
from deconvnet.datasets.formats.label_studio.brush_runs import encode_brush
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from infra.errors import BadInput, UserError
from tests.deconvnet.datasets.formats.inputs import runs, starts_and_lengths, write_image, write_text

FORMS = ("box", "polygon", "parts", "holes")
CLASSES = ("crate", "größe & co", "ball-2")
EXACT = 1e-3
"""A pixel may be inside or outside if its centre is nearer to an edge of a polygon than this, px."""


def inside(outline: np.ndarray, width: int, height: int) -> np.ndarray:
    """The pixels of a polygon: those from whose centres a ray upwards crosses its outline an odd number of times."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    odd = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if x0 != x1:
            odd ^= ((x0 <= x) != (x1 <= x)) & (y0 + (x - x0) / (x1 - x0) * (y1 - y0) < y)
    return odd


def near(outline: np.ndarray, width: int, height: int) -> np.ndarray:
    """The pixels whose centres lie all but on the outline of a polygon."""
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    found = np.zeros((height, width), bool)
    for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        along = end - start
        share = ((centres - start) @ along / max(along @ along, 1e-12)).clip(0, 1)
        found |= np.linalg.norm(centres - start - share[..., None] * along, axis=-1) < EXACT
    return found


class Shape:
    """An object: a rectangle with corners between pixels, or polygons from which holes may be cut."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, form: str) -> None:
        self.label = CLASSES[rng.integers(len(CLASSES))]
        self.is_box, self.holes = form == "box", []
        if self.is_box:
            (x0, x1), (y0, y1) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in (width, height))
            corners = np.roll(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float), rng.integers(4), axis=0)
            self.parts = [corners[:: rng.choice([1, -1])]]
        else:
            star = partial(_star, rng, np.array([width, height], float))
            self.parts = [star(1.0) for _ in range(2 if form == "parts" else 1)]
            self.holes = [star(0.5) for _ in range(rng.integers(1, 3) if form == "holes" else 0)]
        self.mask = np.any([inside(each, width, height) for each in self.parts], axis=0)
        for hole in self.holes:
            self.mask &= ~inside(hole, width, height)
        self.unsure = np.any([near(each, width, height) for each in (*self.parts, *self.holes)], axis=0)

    def box(self) -> tuple[int, int, int, int]:
        """The box round its pixels: x0, y0, x1, y1."""
        y, x = np.nonzero(self.mask)
        return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1

    def crop(self) -> np.ndarray:
        """Its mask within the box."""
        x0, y0, x1, y1 = self.box()
        return self.mask[y0:y1, x0:x1]

    def png(self) -> bytes:
        Image.fromarray(self.crop()).save(sink := io.BytesIO(), "PNG")
        return sink.getvalue()


def _star(rng: np.random.Generator, size: np.ndarray, scale: float) -> np.ndarray:
    """A polygon round some place in the image, which ends at the image's edges."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 13)))[:, None]
    spokes = np.hstack([np.cos(angles), np.sin(angles)]) * rng.uniform(0.2, 0.7, angles.shape) * size * scale
    return (rng.uniform(0.2, 0.8, 2) * size + spokes).clip(0, size).round(2)


class Scene:
    """An image and its objects, which lie on each other as they come or the small over the large."""

    def __init__(self, rng: np.random.Generator, name: str, forms: tuple[str, ...] = FORMS) -> None:
        self.name, self.rng = name, rng
        self.size = [(24, 18), (18, 24), (20, 20)][rng.integers(3)]
        self.objects: list[Shape] = []
        for _ in range(rng.integers(0, 5)):
            shape = Shape(rng, *self.size, str(rng.choice(forms)))
            areas = [0, *(each.mask.sum() for each in self.objects)]
            if min(abs(int(shape.mask.sum()) - area) for area in areas) > 2:  # else it is unsure which one lies on top
                self.objects.append(shape)

    def truth(self, classes: tuple[str, ...], in_order: bool = False) -> np.ndarray:
        truth = np.zeros(self.size[::-1], np.uint8)
        for shape in self.objects if in_order else sorted(self.objects, key=lambda each: -each.mask.sum()):
            truth[shape.mask] = classes.index(shape.label)
        return truth


def simple(shape: Shape) -> bool:
    """Whether an object is one polygon without holes."""
    return len(shape.parts) == 1 and not shape.holes


def write_yolo(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    images, labels = [("images", "labels"), ("train/images", "train/labels"), ("images/train", "labels/train"), ("", "")][
        rng.integers(4)
    ]
    newline, digits = rng.choice(["\n", "\r\n"]), rng.choice([6, 8, 17])
    for scene in scenes:
        write_image(folder / images / f"{scene.name}.jpg", scene.size)
        points = [(CLASSES.index(shape.label), shape.parts[0] / scene.size) for shape in scene.objects]
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
        for z, shape in enumerate(scene.objects):
            x0, y0, x1, y1 = shape.box()
            lengths = ", ".join(map(str, runs(shape.crop())))
            place = f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}" rle="{lengths}"'
            kind = rng.choice(["mask", *["polygon"] * simple(shape), *["box"] * shape.is_box])
            attributes = {
                "polygon": 'points="' + ";".join(f"{x:.2f},{y:.2f}" for x, y in shape.parts[0]) + '"',
                "mask": place,
                "box": f'xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"',
            }[kind]
            shapes.append(f'<{kind} label={quoteattr(shape.label)} z_order="{z + 1}" {attributes}></{kind}>')
        text += "".join(rng.permutation(shapes)) + '<tag label="crate"/></image>'
    write_text(folder / "annotations.xml", text + "</annotations>")
    return AnnotationSource(str(folder / "images"), str(folder / "annotations.xml"))


def write_supervisely(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    for number, scene in enumerate(scenes):
        write_image(folder / f"ds{number % 2}/img/{scene.name}.jpg", scene.size)
        objects = []
        for shape in scene.objects:
            kind = rng.choice(["bitmap", *["polygon"] * (len(shape.parts) == 1), *["rectangle"] * shape.is_box])
            figure = {"classTitle": shape.label, "geometryType": kind}
            box = shape.box()
            if kind == "bitmap":
                figure["bitmap"] = {"data": base64.b64encode(zlib.compress(shape.png())).decode(), "origin": box[:2]}
            else:
                outline = shape.parts[0].tolist() if kind == "polygon" else [box[:2], box[2:]]
                figure["points"] = {"exterior": outline, "interior": [hole.tolist() for hole in shape.holes]}
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
        nothing = np.zeros(scene.size[::-1], bool)
        for label, mask in [(shape.label, shape.mask) for shape in scene.objects] or [("crate", nothing)]:
            text = starts_and_lengths(mask.T if column == "EncodedPixels" else mask)
            lines.append(f"{scene.name}{suffix},{label},{text},{scene.size[0]},{scene.size[1]}\n")
    write_text(folder / "t.csv", f"ImageId,class,{column},Width,Height\n" + "".join(lines) + "\n\n")
    return AnnotationSource(str(folder / "images"), str(folder / "t.csv"))


def write_label_studio_masks(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    tasks = []
    for number, scene in enumerate(scenes, start=7):
        write_image(folder / f"images/{scene.name}.jpg", scene.size)
        tasks.append({"id": number, "data": {"image": f"/data/upload/2/0123abcd-{scene.name}.jpg"}, "annotations": []})
        for i, shape in enumerate(scene.objects):
            (folder / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(shape.mask.astype(np.uint8) * 255)
            mask.save(folder / f"masks/task-{number}-annotation-1-by-1-tag-{shape.label}-{i}.png")
    write_text(folder / "masks/project.json", json.dumps(tasks))
    return AnnotationSource(str(folder / "images"), str(folder / "masks"))


def write_label_studio_results(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    tasks = []
    for number, scene in enumerate(scenes, start=7):
        write_image(folder / f"images/{scene.name}.jpg", scene.size)
        results, size = [], dict(zip(("original_width", "original_height"), scene.size, strict=True))
        for shape in scene.objects:
            kind = rng.choice(["brush", *["polygon"] * simple(shape), *["rectangle"] * shape.is_box])
            x0, y0, x1, y1 = (np.divide(shape.box(), scene.size * 2) * 100).tolist()
            value = {
                "polygon": {"points": (shape.parts[0] / scene.size * 100).tolist()},
                "brush": {"rle": encode_brush(shape.mask)},
                "rectangle": {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0},
            }[kind]
            results.append({"type": f"{kind}labels", "value": {**value, f"{kind}labels": [shape.label]}, **size})
        task = {"id": number, "data": {"image": f"/data/upload/2/0123abcd-{scene.name}.jpg"}}
        tasks.append({**task, "annotations": [{"result": results}]})
    write_text(folder / "project.json", json.dumps(tasks))
    return AnnotationSource(str(folder / "images"), str(folder / "project.json"))


def write_coco(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        write_image(folder / f"images/{scene.name}.jpg", scene.size)
        images.append({"id": number, "file_name": f"{scene.name}.jpg", "width": scene.size[0], "height": scene.size[1]})
        for shape in scene.objects:
            lengths = {"size": shape.mask.shape, "counts": runs(shape.mask.T)}
            outlines = [part.ravel().tolist() for part in shape.parts]
            made = {"image_id": number, "category_id": 3 * CLASSES.index(shape.label), "iscrowd": 0}
            annotations.append(made | {"segmentation": lengths if shape.holes or rng.integers(2) else outlines})
    categories = [{"id": 3 * i, "name": name} for i, name in enumerate(CLASSES)]
    annotated = [{"id": i, **each} for i, each in enumerate(annotations)]
    write_text(folder / "c.json", json.dumps({"images": images, "annotations": annotated, "categories": categories}))
    return AnnotationSource(str(folder / "images"), str(folder / "c.json"))


def write_labelme(scenes: list[Scene], folder: Path, rng: np.random.Generator) -> AnnotationSource:
    for scene in scenes:
        write_image(folder / f"{scene.name}.jpg", scene.size)
        shapes = []
        for number, shape in enumerate(scene.objects):
            x0, y0, x1, y1 = shape.box()
            common = {"label": shape.label, "group_id": number}
            if shape.holes or rng.integers(2):
                mask = {"mask": base64.b64encode(shape.png()).decode(), "points": [[x0, y0], [x1 - 1, y1 - 1]]}
                shapes.append(common | mask | {"shape_type": "mask"})
            else:
                shapes += [common | {"points": part.tolist(), "shape_type": "polygon"} for part in shape.parts]
        size = {"imageWidth": scene.size[0], "imageHeight": scene.size[1]}
        content = {"shapes": shapes, "imagePath": f"{scene.name}.jpg", "imageData": None, **size}
        write_text(folder / f"{scene.name}.json", json.dumps(content))
    return AnnotationSource(str(folder), str(folder))


WRITERS = {
    "coco": write_coco,
    "labelme": write_labelme,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "supervisely": write_supervisely,
    "kaggle": write_kaggle,
    "label_studio masks": write_label_studio_masks,
    "label_studio results": write_label_studio_results,
}


def project(name: str, folder: Path) -> tuple[list[Scene], AnnotationSource]:
    """Scenes with at least one object each, and their project in the files of a tool."""
    rng, scenes = np.random.default_rng(5), list[Scene]()
    while len(scenes) < 3:
        scene = Scene(rng, f"Bild ä {len(scenes)}", FORMS[:2] if name == "yolo" else FORMS)
        scenes += [scene] if scene.objects else []
    return scenes, WRITERS[name](scenes, folder, rng)


def read(name: str, *sources: AnnotationSource, **rules: Any) -> AnnotatedDataset:
    return formats.get_format(name.partition(" ")[0]).read(sources, ImportOptions(boxes_void=False, **rules))


def check(dataset: AnnotatedDataset, scenes: list[Scene]) -> None:
    """Assert that the data set has all scenes, with their masks, and nothing else."""
    assert not dataset.rejects
    loaded = {entry.image_id.rpartition("_")[2]: entry.load() for entry in dataset.entries}
    assert set(loaded) == {scene.name for scene in scenes}
    in_layers = any("z_order" in note for note in dataset.notes)
    for scene in scenes:
        unsure = np.any([shape.unsure for shape in scene.objects], axis=0)
        found, truth = loaded[scene.name].class_mask, scene.truth(dataset.classes, in_layers)
        np.testing.assert_array_equal(np.where(unsure, truth, found), truth)
        assert unsure.mean() < 0.05


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("seed", range(6))
def test_imported_masks_are_the_truth(tmp_path, name, seed):
    rng, forms = np.random.default_rng(seed), FORMS[:2] if name == "yolo" else FORMS
    scenes = [Scene(rng, f"Bild ä {i}", forms) for i in range(6)]
    while not scenes[0].objects:
        scenes[0] = Scene(rng, scenes[0].name, forms)
    source = WRITERS[name](scenes, tmp_path, rng)
    check(read(name, source), [scene for scene in scenes if scene.objects or name != "label_studio masks"])


@pytest.mark.parametrize("name", WRITERS)
def test_two_sources_are_one_data_set_and_keep_their_splits(tmp_path, name):
    rng, sources, scenes = np.random.default_rng(7), [], {}
    for split in ("train", "val"):
        made = []
        while len(made) < 3:
            scene = Scene(rng, f"{split} {len(made)}", FORMS[:2])
            if scene.objects:
                made.append(scene)
                del scene.objects[1:]  # nothing overlaps
        sources.append(replace(WRITERS[name](made, tmp_path / split, rng), split=split))
        scenes |= {scene.name: scene for scene in made}
    dataset = read(name, *sources)
    assert not dataset.rejects and len(dataset.entries) == 6
    for entry in dataset.entries:
        scene = scenes[entry.image_id.rpartition("_")[2]]
        assert entry.split == scene.name.split()[0]
        truth, [shape] = scene.truth(dataset.classes), scene.objects
        np.testing.assert_array_equal(np.where(shape.unsure, truth, entry.load().class_mask), truth)


@pytest.mark.parametrize("name", WRITERS)
def test_images_larger_than_allowed_are_rejected(tmp_path, name):
    rng = np.random.default_rng(3)
    scenes = [Scene(rng, f"a{i}", FORMS[:1]) for i in range(4)]
    assert any(scene.objects for scene in scenes)
    dataset = read(name, WRITERS[name](scenes, tmp_path, rng), max_pixels=300)
    assert dataset.entries
    for entry in dataset.entries:
        with pytest.raises(BadInput, match=r"larger than 300 pixels|1 to 300 px are allowed"):
            entry.load()


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"yolo"}))  # its corners are shares of any image's sides
def test_images_of_another_size_than_the_annotations_state_are_rejected(tmp_path, name):
    """They were enlarged, so all points still lie inside."""
    _, source = project(name, tmp_path)
    for image in tmp_path.rglob("*.jpg"):
        width, height = Image.open(image).size
        write_image(image, (2 * width, 2 * height))
    dataset = read(name, source)
    assert len(dataset.entries) == 3
    for entry in dataset.entries:
        with pytest.raises(BadInput, match="its mask is" if name == "label_studio masks" else "its annotations are for"):
            entry.load()


@pytest.mark.parametrize("name", WRITERS)
def test_annotations_in_another_encoding_are_refused_and_read_by_its_name(tmp_path, name):
    scenes, source = project(name, tmp_path)
    for file in tmp_path.rglob("*.*"):
        if file.suffix not in (".jpg", ".png"):
            text = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), file.read_text("utf-8"))  # as JSON escapes
            file.write_bytes(text.encode("cp1252"))
    with pytest.raises(UserError, match="--encoding"):
        read(name, source)
    check(read(name, source, encoding="cp1252"), scenes)


@pytest.mark.parametrize("name", WRITERS)
def test_hidden_files_are_ignored_and_suffixes_may_be_upper_case(tmp_path, name):
    """As macOS leaves ._a.json beside a.json on other systems' disks and in zip files."""
    scenes, source = project(name, tmp_path)
    for file in list(tmp_path.rglob("*.*")):
        beside, inside = file.with_name(f"._{file.name}"), file.parent / ".cache" / file.name
        for hidden in (beside, inside, tmp_path / ".cache" / file.relative_to(tmp_path)):
            write_text(hidden, "\0\5\x16\7Mac OS X")
        if file.suffix not in (".jpg", ".png"):
            file.write_bytes(file.read_bytes().replace(b".jpg", b".JPG"))
        if file.suffix in (".jpg", ".json", ".txt") and str(file) != source.annotations and file.stem not in ("meta", "classes"):
            file.rename(file.with_name(file.stem.replace(".jpg", ".JPG") + file.suffix.upper()))
    check(read(name, source), scenes)
