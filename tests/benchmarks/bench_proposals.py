"""`make bench-proposals`: compare edge detectors by their boxes and their edges, all on the same images.

Prints Markdown and writes it to OUT/proposals.md, with the curves in OUT/recall.png.

make bench-proposals                                        voc-sample val and BSDS500 val
make bench-proposals ARGS='--split train --every 3'         train, on which settings are chosen
make bench-proposals ARGS='--edges my-forest.yml.gz'        one more forest; may be repeated
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from proposals.edgebox import PAPER_OPTIONS, EdgeBoxOptions, find_boxes
from proposals.edges.boundary_metrics import BSDS_THINNING, edge_counts, edge_quality
from proposals.edges.bsds import bsds_files, read_bsds_image
from proposals.edges.detector import edge_map, edge_orientations, suppress_non_maxima
from proposals.image_codec import decode_image, decode_mask
from proposals.recall import CURVE_COUNTS, Recall, best_overlaps, object_boxes, recall_table, sum_recalls

SHARED = Path(os.environ.get("DECONVNET_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
Sources = Mapping[str, EdgeBoxOptions]
"""The options that are compared, by name; the first is the baseline."""
STEPS = ("edges", "orientation and suppression", "EdgeBox")
"""What is timed."""


def sources(files: Iterable[str], multiscale: bool = False) -> Sources:
    """The options to compare.

    Args:
        files: further forests.
        multiscale: whether to add the package's forest at three scales.
    """
    ours = EdgeBoxOptions()
    compared = {
        "gradient, EdgeBox's defaults": PAPER_OPTIONS,
        "forest, EdgeBox's defaults": replace(PAPER_OPTIONS, edges="forest"),
        f"{detector_name(ours)}, our defaults": ours,
    }
    if multiscale:
        compared["forest at three scales, our defaults"] = replace(ours, multiscale=True)
    return compared | {f"{file}, our defaults": replace(ours, edge_model=file) for file in files}


def detector_name(options: EdgeBoxOptions) -> str:
    """The name of the edge detector, for the tables."""
    return (options.edge_model or options.edges) + (" at three scales" if options.multiscale else "")


def thin_edges(image: np.ndarray, options: EdgeBoxOptions, **thinning: int) -> np.ndarray:
    """The thin edges (H, W) that the options' detector finds in an image."""
    return edge_map(image, options.edges, options.edge_model, options.multiscale, **thinning)[0]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a function; returns its result and the seconds it took."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started


def measure_boxes(task: tuple[str, Any, float, Sources]) -> dict[str, tuple[Recall, np.ndarray]] | str:
    """Measure the boxes of one image.

    Args:
        task: the data set's folder, the image's files, the smallest area of an object's box (px²) and the options to compare.

    Returns:
        By name, the recall and the seconds of each of STEPS, float64 (3,); or the reason why the image cannot be used.
    """
    from deconvnet.datasets.voc import read_row
    from infra.storage.tables import Reject

    root, files, min_area, compared = task
    row = read_row(root, files, "", num_classes=255, max_pixels=100_000_000)
    if isinstance(row, Reject):
        return f"{row.image_id}: {row.reason}"
    image, objects = decode_image(row["image"]), object_boxes(decode_mask(row["object_mask"]), min_area)
    found = {}
    for name, options in compared.items():
        edges, edges_and_thinning = timed(thin_edges, image, options)
        # Thinning is timed on the thin edges: it takes the same time on any map.
        _, thinning = timed(lambda thin: suppress_non_maxima(thin, edge_orientations(thin)), edges)
        (boxes, _), total = timed(find_boxes, image, options)
        seconds = np.array([edges_and_thinning - thinning, thinning, total - edges_and_thinning])
        found[name] = (Recall.from_overlaps(best_overlaps(boxes, objects, CURVE_COUNTS), CURVE_COUNTS), seconds)
    return found


def measure_edges(task: tuple[tuple[Path, Path], Sources]) -> dict[str, np.ndarray]:
    """The `edge_counts` of one image of BSDS500, by name of the options."""
    files, compared = task
    annotated = read_bsds_image(files)
    return {
        name: edge_counts(thin_edges(annotated.image, o, **BSDS_THINNING), annotated.boundaries) for name, o in compared.items()
    }


def one_thread() -> None:
    """Limit OpenCV to one thread in the processes of a pool: each has its own image."""
    cv2.setNumThreads(1)


def over(pool: ProcessPoolExecutor, function: Callable[[Any], Any], tasks: list[Any], title: str) -> Iterator[Any]:
    """Map a function over tasks by a process pool, showing progress."""
    from infra.runtime.progress import progress

    return progress(pool.map(function, tasks), len(tasks), title, "images")


def boxes(pool: ProcessPoolExecutor, a: argparse.Namespace, compared: Sources) -> Iterator[str]:
    """Compare boxes on a data set in VOC's layout; yields paragraphs of Markdown and writes the curves to OUT/recall.png."""
    from deconvnet.datasets.voc import VocDataset
    from deconvnet.reporting.plots import recall_curves

    dataset = VocDataset(a.voc)
    images, rejects = dataset.split(a.split)
    tasks = [(dataset.root, files, a.min_area, compared) for files in images[:: a.every]]
    results = list(over(pool, measure_boxes, tasks, "boxes"))
    unused = [*(f"{r.image_id}: {r.reason}" for r in rejects), *(r for r in results if isinstance(r, str))]
    done = [r for r in results if not isinstance(r, str)]
    recalls = {name: sum_recalls((d[name][0] for d in done), CURVE_COUNTS) for name in compared} if done else {}
    yield f"## Boxes: {Path(dataset.root).name} {a.split}" + (f", one image in {a.every}" if a.every > 1 else "")
    yield from (f"Left out: {each}." for each in unused)
    if not recalls or not next(iter(recalls.values())).num_objects:
        yield f"No object of {a.min_area:,.0f} px² or more."
        return
    yield (
        f"{len(done):,} images, {next(iter(recalls.values())).num_objects:,} objects whose box has {a.min_area:,.0f} px² or "
        "more. In brackets: percentage points above the first row."
    )
    yield recall_table(recalls)
    Path(a.out, "recall.png").write_bytes(recall_curves(recalls))
    yield "![recall](recall.png)"
    yield f"Seconds per image, one core, median of {len(done):,}:"
    lines = [f"| | {' | '.join(STEPS)} | total |", "|---|" + "---:|" * (len(STEPS) + 1)]
    for name in compared:
        seconds = np.array([d[name][1] for d in done])
        medians = [*np.median(seconds, axis=0), np.median(seconds.sum(axis=1))]
        lines.append(f"| {name} | {' | '.join(f'{s:.3f}' for s in medians)} |")
    yield "\n".join(lines)


def edges(pool: ProcessPoolExecutor, a: argparse.Namespace, compared: Sources) -> Iterator[str]:
    """Compare edges by their F-measure on BSDS500; yields paragraphs of Markdown."""
    yield f"## Edges: BSDS500 {a.bsds_split}"
    if not Path(a.bsds).is_dir():
        yield f"Left out: there is no {a.bsds} (--bsds)."
        return
    detectors = {detector_name(options): options for options in compared.values()}  # edges do not depend on EdgeBox's options
    tasks = [(files, detectors) for files in bsds_files(a.bsds, a.bsds_split)[:: a.every]]
    done = list(over(pool, measure_edges, tasks, "edges"))
    yield f"{len(done)} images, 25 thresholds, one-to-one matching within 0.0075 of the diagonal."
    lines = ["| | ODS | at | precision | recall | OIS | AP |", "|---|" + "---:|" * 6]
    for name in detectors:
        q = edge_quality([d[name] for d in done])
        values = (q.ods, q.threshold, q.precision, q.recall, q.ois, q.average_precision)
        lines.append(f"| {name} | {' | '.join(f'{x:.3f}' for x in values)} |")
    yield "\n".join(lines)


def main() -> int:
    """Parse the options and print the comparison; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--voc", default=str(SHARED / "voc-sample"), help="folder in VOC's layout (default: %(default)s)")
    options.add_argument("--split", default="val", help="which images (default: val, only for the final table)")
    options.add_argument("--every", type=int, default=1, metavar="N", help="use every Nth image")
    options.add_argument("--min-area", type=float, default=2000.0, help="smallest area of an object's box, px²")
    options.add_argument("--bsds", default=str(SHARED / "bsds500"), help="BSDS500's folder (default: %(default)s)")
    options.add_argument("--bsds-split", default="val", help="which images (default: val)")
    options.add_argument("--edges", action="append", default=[], metavar="FILE", help="one more forest; may be repeated")
    options.add_argument("--multiscale", action="store_true", help="also the forest at three scales")
    options.add_argument("--only", choices=("boxes", "edges"), help="only this half")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument(
        "--out", default="runs/bench-proposals", help="where proposals.md and recall.png go (default: %(default)s)"
    )
    a = options.parse_args()
    if min(a.every, a.processes) < 1:
        options.error("--every and --processes must be 1 or more")
    Path(a.out).mkdir(parents=True, exist_ok=True)
    compared = sources(a.edges, a.multiscale)
    paragraphs = []
    with ProcessPoolExecutor(a.processes, get_context("spawn"), one_thread) as pool:
        for name, half in (("boxes", boxes), ("edges", edges)):
            for paragraph in half(pool, a, compared) if a.only in (None, name) else ():
                paragraphs.append(paragraph.strip())
                print(paragraphs[-1] + "\n", flush=True)
    Path(a.out, "proposals.md").write_text("\n\n".join(paragraphs) + "\n")
    return 0


if __name__ == "__main__":
    from workflows import cli

    sys.exit(cli.run(main))
