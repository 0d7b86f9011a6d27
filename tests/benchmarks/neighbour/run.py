"""Train and measure a neighbour on our images, splits and metric: segmentation_models.pytorch's U-Net on EfficientNet-Lite0.

In a virtual environment of its own (requirements.txt beside this file), from the root of the repository:

  python tests/benchmarks/neighbour/run.py check    --root ../shared/voc-sample
  python tests/benchmarks/neighbour/run.py train    --root ../shared/voc-sample --out runs/neighbour --minutes 60
  python tests/benchmarks/neighbour/run.py evaluate --root ../shared/voc-sample --out runs/neighbour --split val
  python tests/benchmarks/neighbour/run.py speed    --root ../shared/voc-sample --out runs/neighbour

`train` is resumed by the same command. Everything was chosen on dev; `evaluate --split val` is for the end. `check` shows that
the ImageNet weights are where they belong: the classifier that they make finds dogs and cats on train images of these classes.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait use no processor time, which is what counts
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from deconvnet.datasets.palette import VOC_CLASSES  # noqa: E402  (needs the path above)
from tests.benchmarks.neighbour import data, network  # noqa: E402
from tests.benchmarks.neighbour.training import Recipe, Run  # noqa: E402

IMAGENET = {"dog": range(151, 269), "cat": range(281, 286)}
"""ImageNet's ids of dogs and of (domestic) cats."""
CLASSES = len(VOC_CLASSES)


def train(args: argparse.Namespace) -> None:
    """Train, or continue a training, and measure it on dev."""
    recipe = Recipe(**{each.name: getattr(args, each.name) for each in fields(Recipe)})
    torch.set_num_threads(recipe.threads)
    cv2.setNumThreads(1)
    splits = data.read_splits(args.root, recipe.seed)
    print({split: len(ids) for split, ids in splits.items()}, flush=True)
    unet = network.unet(CLASSES, recipe.seed)
    run = Run(args.out, recipe, unet, unet.encoder)
    augment = data.Augmentation(recipe.crop)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = data.training_batch(args.root, splits["train"], augment, recipe.batch, step, recipe.seed)
        return torch.from_numpy(images), torch.from_numpy(masks)

    def dev() -> float:
        return data.evaluate(network.scorer(unet), args.root, splits["dev"], CLASSES, flip=False).mean_iou

    run.train(batch, args.report_every, args.report_every * args.dev_every, dev)
    print(json.dumps({"parameters": network.count_parameters(unet.parameters()), "steps": run.progress.step, **run.speed()}))


def load(args: argparse.Namespace) -> tuple[torch.nn.Module, Run]:
    """The network of a run folder, for prediction."""
    recipe = Recipe(**json.loads((args.out / "recipe.json").read_text()))
    unet = network.unet(CLASSES, recipe.seed)
    run = Run(args.out, recipe, unet, unet.encoder)
    return unet.eval(), run


def evaluate(args: argparse.Namespace) -> None:
    """Measure a trained network on a split, with the mirrored images, and write `SPLIT.json` to its folder.

    Raises:
        ValueError: if the training is not complete.
    """
    unet, run = load(args)
    if not run.is_done:
        raise ValueError(
            f"the training in {args.out} is not complete ({int(100 * run.recipe.share_done(run.progress))} %): train first"
        )
    torch.set_num_threads(run.recipe.threads)
    ids = data.read_splits(args.root, run.recipe.seed)[args.split]
    found = {}
    for name, flip in (("mirrored_too", True), ("once", False)):
        matrix = data.evaluate(network.scorer(unet), args.root, ids, CLASSES, flip)
        iou = dict(zip(VOC_CLASSES, matrix.iou.round(4).tolist(), strict=True))
        found[name] = {"mean_iou": matrix.mean_iou, "pixel_accuracy": matrix.pixel_accuracy, "iou": iou}
        print(
            f"{args.split}, {len(ids)} images, {name}: mean IoU {matrix.mean_iou:.3f}, pixel accuracy {matrix.pixel_accuracy:.3f}"
        )
    about = {"steps": run.progress.step, "cpu_minutes": run.progress.cpu_seconds / run.recipe.threads / 60, **run.speed()}
    (args.out / f"{args.split}.json").write_text(json.dumps(about | found, indent=1))


def speed(args: argparse.Namespace) -> None:
    """Print the median time to segment a dev image, on one thread and on two, once and with its mirrored image."""
    unet, run = load(args)
    ids = data.read_splits(args.root, run.recipe.seed)["dev"][: args.images]
    print(f"{network.count_parameters(unet.parameters()):,} parameters, {len(ids)} images, torch {torch.__version__}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for flip in (False, True):
            taken: list[tuple[float, float]] = []
            for image, _ in [*data.pairs(args.root, ids[:1]), *data.pairs(args.root, ids)]:
                wall, cpu = time.perf_counter(), time.process_time()
                data.predict(network.scorer(unet), image, flip)
                taken.append((time.perf_counter() - wall, time.process_time() - cpu))
            wall, cpu = (statistics.median(each) for each in zip(*taken[1:], strict=True))  # the first one warms up
            what = "with the mirrored image" if flip else "once"
            print(f"{threads} threads, {what}: {wall:.3f} s an image, processor time {cpu:.3f} s", flush=True)


def check(args: argparse.Namespace) -> None:
    """Show that the encoder's weights are ImageNet's: classify train images whose only object is a large dog or cat.

    Raises:
        ValueError: if fewer than half of them are what they should be, where chance would find 12 % (dogs) or 0.5 % (cats).
    """
    classifier = network.classifier()
    for name, expected in IMAGENET.items():
        class_id, hits, seen = VOC_CLASSES.index(name), 0, 0
        for image, mask in data.pairs(args.root, data.read_splits(args.root, 0)["train"]):
            present = set(np.unique(mask).tolist()) - {0, 255}
            if present != {class_id} or (mask == class_id).mean() < 0.3 or seen == args.images:
                continue
            side = min(mask.shape)
            top, left = ((extent - side) // 2 for extent in mask.shape)
            square = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
            with torch.inference_mode():
                found = int(classifier(torch.from_numpy(data.prepared(square)).permute(2, 0, 1)[None]).argmax())
            hits, seen = hits + (found in expected), seen + 1
        print(f"{name}: ImageNet's class is one of a {name} on {hits} of {seen} images", flush=True)
        if 2 * hits < seen or not seen:
            raise ValueError(f"the weights don't find {name}s: they, or the preprocessing, are not those of the classifier")


def main() -> int:
    """Run the command that is named. Exit code 2 for a wrong option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "train", "evaluate", "speed"))
    parser.add_argument("--root", type=Path, required=True, help="folder in VOC's layout")
    parser.add_argument("--out", type=Path, default=Path("runs/neighbour"), help="folder of the run")
    parser.add_argument("--split", choices=("dev", "val"), default="dev", help="evaluate: images to measure on")
    parser.add_argument("--images", type=int, default=20, help="check, speed: most images")
    parser.add_argument("--report_every", type=int, default=20, help="train: steps between reports")
    parser.add_argument("--dev_every", type=int, default=15, help="train: reports between measurements on dev")
    for each in fields(Recipe):
        parser.add_argument(f"--{each.name}", type=type(each.default), default=each.default, help="train: see training.py")
    args = parser.parse_args()
    try:
        {"check": check, "train": train, "evaluate": evaluate, "speed": speed}[args.command](args)
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
