"""Compare a newly trained edge detector with two others.

EdgeBox finds boxes that may contain objects (proposals) from the edges of an image. A trained edge detector is a structured
forest. The others are the image gradient and the forest that comes with the package. The comparison measures the recall of
EdgeBox's boxes on the images of the split "dev", and the quality of the edges on the split "val" of BSDS500, the Berkeley data
set of boundaries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from deconvnet.reporting.plots import recall_curves
from infra.errors import BadInput
from infra.runtime.executor import Executor
from infra.storage import tables
from proposals.edgebox import PAPER_OPTIONS, EdgeBoxOptions, find_boxes
from proposals.edges.boundary_metrics import BSDS_THINNING, EdgeQuality, edge_counts, edge_quality
from proposals.edges.bsds import bsds_files, read_bsds_image
from proposals.edges.detector import edge_map
from proposals.image_codec import decode_image, decode_mask
from proposals.recall import MIN_AREA, Recall, best_overlaps, counts_up_to, object_boxes, recall_table, sum_recalls

if TYPE_CHECKING:
    from proposals.settings import ProposalSettings

Sources = Mapping[str, EdgeBoxOptions]
"""The options for finding boxes with each edge detector that is compared, by name of the detector."""
_BSDS_SPLIT = "val"


@dataclass(frozen=True)
class EdgeReport:
    """The outcome of a comparison of edge detectors.

    Attributes:
        metrics: metrics of the newly trained detector, by their name in MLflow. For example, "bsds.ods" is the F-measure on the
            data set BSDS500 if all images use the same threshold, the best one.
        files: contents by file name: edges.json (metrics), edges.md (tables of all detectors' metrics) and, if boxes were
            measured, edges.png (chart).
    """

    metrics: dict[str, float]
    files: dict[str, bytes]


def compare_edges(
    images_uri: str | None, bsds: str | None, forest: str, settings: "ProposalSettings", executor: Executor
) -> EdgeReport:
    """Compare a newly trained edge detector with the image gradient and with the detector that comes with the package.

    No file is written.

    Args:
        images_uri: URI of a table `images`. The recall of boxes is measured on the images of its split "dev"; None to leave this
            out.
        bsds: folder of the data set BSDS500. The quality of edges is measured on its split "val"; None to leave this out.
        forest: URI of the file of the newly trained edge detector (a structured forest).
        settings: options for finding boxes.
        executor: runs the measurements, on several parts (Parquet files) of the table or several images of BSDS500 at once.

    Returns:
        The metrics of the newly trained detector, and tables and a chart of all three detectors.
    """
    ours = EdgeBoxOptions(**settings.edge_box)
    sources = {
        "gradient, EdgeBox's defaults": replace(PAPER_OPTIONS, max_boxes=settings.max_boxes),
        "shipped forest": replace(ours, edges="forest", edge_model=None),
        "this forest": replace(ours, edges="forest", edge_model=forest),
    }
    metrics: dict[str, float] = {}
    files: dict[str, bytes] = {}
    lines = ["# Edges", ""]
    recalls = _measure_boxes(images_uri, sources, min(MIN_AREA, 2 * settings.min_box_area), executor) if images_uri else {}
    if recalls and recalls["this forest"].num_objects:
        metrics |= {f"dev.{name}": value for name, value in recalls["this forest"].metrics().items()}
        files["edges.png"] = recall_curves(recalls)
        lines += [f"Boxes, on the {recalls['this forest'].num_objects:,} objects of dev:", "", recall_table(recalls)]
    elif images_uri:
        lines += ["dev has no objects to measure boxes on.", ""]
    if bsds:
        qualities = _measure_edges(bsds, sources, executor)
        metrics |= {"bsds.ods": qualities["this forest"].ods, "bsds.ois": qualities["this forest"].ois}
        lines += [f"Edges, on BSDS500 {_BSDS_SPLIT}:", "", "| | ODS | OIS |", "|---|---:|---:|"]
        lines += [f"| {name.split(',')[0]} | {q.ods:.3f} | {q.ois:.3f} |" for name, q in qualities.items()]
    files |= {"edges.json": (json.dumps(metrics, indent=1) + "\n").encode(), "edges.md": "\n".join([*lines, ""]).encode()}
    return EdgeReport(metrics, files)


def _measure_boxes(images_uri: str, sources: Sources, min_area: float, executor: Executor) -> dict[str, Recall]:
    """Measure for each edge detector how many objects its boxes find, on the images of the split "dev".

    Args:
        images_uri: URI of the table `images`.
        sources: options for finding boxes, by name of the edge detector.
        min_area: smallest area of the bounding box of an object that counts, in square pixels.
        executor: runs the measurement of several parts (Parquet files) of the table at once.

    Returns:
        The recall over all these images, by name of the edge detector.
    """
    images = tables.require_commit(images_uri)
    units = [part for part in images.parts if any(group.splits.get("dev") for group in part.row_groups)]
    counts = counts_up_to(max(options.max_boxes for options in sources.values()))
    work = partial(_part_recalls, images_uri, sources, min_area, counts)
    done = [each for _, found in executor.map(dict(enumerate(units)), work, title="boxes of dev") for each in found]
    return {name: sum_recalls((each[name] for each in done), counts) for name in sources}


def _part_recalls(
    images_uri: str, sources: Sources, min_area: float, counts: Sequence[int], index: int, part: tables.Part
) -> list[dict[str, Recall]]:
    """Measure the recall of each edge detector's boxes on the images of the split "dev" in one part (Parquet file) of the table.

    An executor calls this function in a worker process. Images without an object mask, or that can't be decoded, are skipped.

    Args:
        images_uri: URI of the table `images`.
        sources: options for finding boxes, by name of the edge detector.
        min_area: smallest area of the bounding box of an object that counts, in square pixels.
        counts: numbers of boxes k. The recall of the first k boxes of each image is measured.
        index: index of the part, which the executor passes; not used.
        part: the part of the table.

    Returns:
        For each image, a dict from the name of the edge detector to the recall of its boxes.
    """
    cv2.setNumThreads(1)  # every CPU already works on another image or part
    recalls = []
    for row in tables.iter_rows(images_uri, ["split", "image", "object_mask"], part):
        if row["split"] != "dev" or row["object_mask"] is None:
            continue
        try:
            image, objects = decode_image(row["image"]), object_boxes(decode_mask(row["object_mask"]), min_area)
        except BadInput:
            continue
        overlaps = {name: best_overlaps(find_boxes(image, options)[0], objects, counts) for name, options in sources.items()}
        recalls.append({name: Recall.from_overlaps(each, counts) for name, each in overlaps.items()})
    return recalls


def _image_edge_counts(sources: Sources, index: int, files: tuple[Path, Path]) -> dict[str, np.ndarray]:
    """Count how many edge pixels of each edge detector match the annotated boundaries of one BSDS500 image.

    An executor calls this function in a worker process.

    Args:
        sources: options for finding boxes, by name of the edge detector. Only the options that concern edges are used.
        index: index of the image, which the executor passes; not used.
        files: paths of the image file and of its annotation file.

    Returns:
        The counts by name of the edge detector: int64 arrays (T, 4) for T thresholds of edge strength. The columns are: detected
        pixels that match any annotator, all detected pixels, annotated pixels that are matched, and all annotated pixels. The
        last two are summed over the annotators.
    """
    cv2.setNumThreads(1)  # every CPU already works on another image or part
    annotated = read_bsds_image(files)
    edges = {n: edge_map(annotated.image, k.edges, k.edge_model, k.multiscale, **BSDS_THINNING)[0] for n, k in sources.items()}
    return {name: edge_counts(thin, annotated.boundaries) for name, thin in edges.items()}


def _measure_edges(bsds: str, sources: Sources, executor: Executor) -> dict[str, EdgeQuality]:
    """Measure the quality of each edge detector's edges on the split "val" of BSDS500.

    Args:
        bsds: folder of the data set BSDS500.
        sources: options for finding boxes, by name of the edge detector.
        executor: runs the measurement of several images at once.

    Returns:
        The quality (the F-measures ODS and OIS) by name of the edge detector.
    """
    units = dict(enumerate(bsds_files(bsds, _BSDS_SPLIT)))
    work = partial(_image_edge_counts, sources)
    done = [found for _, found in executor.map(units, work, title="edges of BSDS500", unit="images")]
    return {name: edge_quality([each[name] for each in done]) for name in sources}
