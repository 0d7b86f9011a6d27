"""`make bench-proposals`: how good edges and boxes are, by edge source, paired over the same photographs; Markdown, and a picture.

make bench-proposals                                        voc-sample val and BSDS500 val
make bench-proposals ARGS='--split train --every 3'         choosing is done on train
make bench-proposals ARGS='--edges my-forest.yml.gz'        a further edge source, as often as wanted
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(os.environ.get("DECONVNET_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
Keywords = Mapping[str, Any]  # of edge_boxes
PARTS = ("edges", "orientation and suppression", "EdgeBox")


def sources(files: Iterable[str], multiscale: bool = False) -> dict[str, Keywords]:
    """What is compared, by name, the baseline first."""
    from proposals.settings import PAPER, ProposalSettings

    defaults = ProposalSettings().model_dump()
    made = {
        "gradient, EdgeBox's defaults": PAPER,
        "forest, EdgeBox's defaults": {**PAPER, "edges": "forest"},
        f"{edge_source(defaults)}, our defaults": defaults,
    }
    if multiscale:
        made["forest at three scales, our defaults"] = {**defaults, "multiscale": True}
    return made | {f"{file}, our defaults": {**defaults, "edge_model": file} for file in files}


def edge_source(keywords: Keywords) -> str:
    """What the edges are made by, for a person."""
    return str(keywords["edge_model"] or keywords["edges"]) + (" at three scales" if keywords["multiscale"] else "")


def thin_edges(image: np.ndarray, keywords: Keywords, **thinned: int) -> tuple[np.ndarray, np.ndarray]:
    """A source's suppressed edges and their orientations."""
    from proposals.edges.detector import edge_map

    return edge_map(image, **{name: keywords[name] for name in signature(edge_map).parameters if name in keywords}, **thinned)


def timed(work: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    made = work(*arguments, **keywords)
    return made, time.perf_counter() - started


def measure_photograph(task: tuple[str, Any, float, Mapping[str, Keywords]]) -> dict[str, tuple[Any, np.ndarray]] | str:
    """By source: recall on one photograph's objects, and seconds of PARTS, float64 (3,). A string is why it can't be used."""
    from deconvnet.datasets.voc import read_row
    from infra.storage.tables import Reject
    from proposals import edge_boxes
    from proposals.edges.detector import orientations, suppress
    from proposals.image_codec import decode_image, decode_mask
    from proposals.recall import CURVE_COUNTS, Recall, best_overlaps, object_boxes

    root, photograph, min_area, compared = task
    row = read_row(root, photograph, "", num_classes=255, max_pixels=100_000_000)
    if isinstance(row, Reject):
        return f"{row.image_id}: {row.reason}"
    image, objects = decode_image(row["image"]), object_boxes(decode_mask(row["object_mask"]), min_area)
    found = {}
    for name, keywords in compared.items():
        (edges, _), both = timed(thin_edges, image, keywords)
        _, suppression = timed(lambda thin: suppress(thin, orientations(thin)), edges)  # they cost as much on any map
        (boxes, _), all_three = timed(edge_boxes, image, **keywords)
        seconds = np.array([both - suppression, suppression, all_three - both])
        found[name] = (Recall.of(best_overlaps(boxes, objects, CURVE_COUNTS), CURVE_COUNTS), seconds)
    return found


def measure_edges(task: tuple[Any, Mapping[str, Keywords]]) -> dict[str, np.ndarray]:
    """By source: the `edge_counts` of one photograph of BSDS500."""
    from proposals.edges.boundary_metrics import THINNED, edge_counts
    from proposals.edges.bsds import read_annotated

    files, compared = task
    annotated = read_annotated(files)
    return {name: edge_counts(thin_edges(annotated.image, k, **THINNED)[0], annotated.boundaries) for name, k in compared.items()}


def one_thread() -> None:
    """For the processes of a pool: a photograph each, so a thread each."""
    import cv2

    cv2.setNumThreads(1)


def over(pool: ProcessPoolExecutor, work: Callable[[Any], Any], tasks: list[Any], title: str) -> Iterator[Any]:
    from infra.runtime.progress import progress

    return progress(pool.map(work, tasks), len(tasks), title, "photographs")


def boxes(pool: ProcessPoolExecutor, a: argparse.Namespace, compared: Mapping[str, Keywords]) -> Iterator[str]:
    """Markdown of recall and seconds; writes the curves."""
    from deconvnet.datasets.voc import VocDataset
    from deconvnet.reporting.plots import recall_curves
    from proposals.recall import add, table

    folder = VocDataset(a.voc)
    photographs, rejects = folder.split(a.split)
    tasks = [(folder.root, photograph, a.min_area, compared) for photograph in photographs[:: a.every]]
    done = list(over(pool, measure_photograph, tasks, "boxes"))
    unused = [*(f"{r.image_id}: {r.reason}" for r in rejects), *(d for d in done if isinstance(d, str))]
    done = [d for d in done if not isinstance(d, str)]
    recalls = {name: add((d[name][0] for d in done), done[0][name][0].counts) for name in compared} if done else {}
    yield f"## Boxes: {Path(folder.root).name} {a.split}" + (f", one photograph in {a.every}" if a.every > 1 else "")
    yield from (f"Left out: {each}." for each in unused)
    if not recalls or not next(iter(recalls.values())).objects:
        yield f"No object of {a.min_area:,.0f} px² or more."
        return
    yield (
        f"{len(done):,} photographs, {next(iter(recalls.values())).objects:,} objects whose box has {a.min_area:,.0f} px² or more. "
        "In brackets, points more than the first."
    )
    yield table(recalls)
    Path(a.out, "recall.png").write_bytes(recall_curves(recalls))
    yield "![recall](recall.png)"
    yield f"Seconds a photograph, one core, median of {len(done):,}:"
    lines = [f"| | {' | '.join(PARTS)} | all |", "|---|" + "---:|" * (len(PARTS) + 1)]
    for name in compared:
        seconds = np.array([d[name][1] for d in done])
        figures = [*np.median(seconds, axis=0), np.median(seconds.sum(axis=1))]
        lines.append(f"| {name} | {' | '.join(f'{s:.3f}' for s in figures)} |")
    yield "\n".join(lines)


def edges(pool: ProcessPoolExecutor, a: argparse.Namespace, compared: Mapping[str, Keywords]) -> Iterator[str]:
    """Markdown of the F-measure on BSDS500."""
    from proposals.edges.boundary_metrics import edge_quality
    from proposals.edges.bsds import bsds_files

    yield f"## Edges: BSDS500 {a.bsds_split}"
    if not Path(a.bsds).is_dir():
        yield f"Left out: there is no {a.bsds} (--bsds)."
        return
    names = {edge_source(k): k for k in compared.values()}  # EdgeBox's settings don't matter to edges
    tasks = [(files, names) for files in bsds_files(a.bsds, a.bsds_split)[:: a.every]]
    done = list(over(pool, measure_edges, tasks, "edges"))
    yield f"{len(done)} photographs, 25 thresholds, one-to-one matching within 0.0075 of the diagonal."
    lines = ["| | ODS | at | precision | recall | OIS | AP |", "|---|" + "---:|" * 6]
    for name in names:
        q = edge_quality([d[name] for d in done])
        figures = (q.ods, q.threshold, q.precision, q.recall, q.ois, q.average_precision)
        lines.append(f"| {name} | {' | '.join(f'{x:.3f}' for x in figures)} |")
    yield "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--voc", default=str(SHARED / "voc-sample"), help="folder in VOC's layout (default: %(default)s)")
    options.add_argument("--split", default="val", help="its photographs (default: val, which is for the final table alone)")
    options.add_argument("--every", type=int, default=1, metavar="N", help="every Nth photograph")
    options.add_argument("--min-area", type=float, default=2000.0, help="least area of an object's box, px²")
    options.add_argument("--bsds", default=str(SHARED / "bsds500"), help="BSDS500's folder (default: %(default)s)")
    options.add_argument("--bsds-split", default="val", help="its photographs (default: val)")
    options.add_argument("--edges", action="append", default=[], metavar="FILE", help="a further forest; may be given again")
    options.add_argument("--multiscale", action="store_true", help="the forest at three scales, too")
    options.add_argument("--only", choices=("boxes", "edges"), help="one half")
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
