"""What is told of a run: read from its workspace, from whatever of it is finished."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deconvnet.reporting.figure import TITLES
from infra import storage
from infra.storage import tables

PAPER = {"fcn8s": 0.622, "deconvnet": 0.696, "deconvnet_crf": 0.705, "edeconvnet": 0.717, "edeconvnet_crf": 0.725}
"""The paper's mean IoU on VOC 2012's test set, trained on VOC's data alone (Noh, Hong, Han 2015, Table 1)."""

STAGES = {
    "prepare": "Reads the photographs and their masks, checks each, and files them in the table `images` with their split: "
    "train, dev (choices while training) or val (the final table alone). What can't be used goes to `rejects` with its reason.",
    "proposals": "Finds boxes that may hold an object (EdgeBox), best first.",
    "examples": "Cuts the crops that DeconvNet learns from: stage 1 round annotated objects, stage 2 at proposals.",
    "fcn8s_start": "Makes ImageNet's VGG-16 as narrow as the FCN-8s that starts from it.",
    "stage1_start": "Makes ImageNet's VGG-16 as narrow as the DeconvNet that starts from it.",
    "fcn8s": "Trains FCN-8s on whole photographs: the other half of the ensemble.",
    "stage1": "Trains DeconvNet on easy crops: one object each, in the middle.",
    "stage2": "Trains DeconvNet on, with crops at proposals, as it meets them when it labels a photograph.",
    "evaluate": "Labels the val photographs in the paper's five ways and measures them; draws the report.",
    "register": "Files the ensemble in MLflow's model registry.",
    "champion": "Measures the model that is champion now on the same val photographs.",
    "verdict": "Compares the two: the new one becomes champion if it is better by the rule of `retrain.*`.",
}
"""What each stage does, in a sentence or two of Markdown."""

_PICTURES = (
    "comparison", "wins", "unpooling", "instances", "examples_stage1", "examples_stage2",
    "iou_by_class", "iou_by_proposals", "iou_by_size", "confusion", "proposals", "training_curves",
)  # fmt: skip
_FIRST_REJECTS = 3


@dataclass(frozen=True)
class Rejects:
    """Inputs set aside: how many by reason, the most frequent first, and the first few of each."""

    counts: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Facts:
    """A run, for a reader.

    results: its `results.json`. pictures: PNGs by name. splits: photographs by split; crops: by table. seconds: by stage, in the order
    they ran. proposals: its `proposals.json`, {} where there is none. settings: JSON-able, without secrets. code: its version; when: UTC.
    """

    title: str
    workspace: str
    results: Mapping[str, Any]
    pictures: Mapping[str, bytes]
    splits: Mapping[str, int]
    digest: str
    crops: Mapping[str, int]
    rejects: Rejects
    seconds: Mapping[str, float]
    proposals: Mapping[str, Any]
    settings: Mapping[str, Any]
    code: str
    when: datetime


def gather(
    workspace: str, *, title: str, settings: Mapping[str, Any], code: str, stages: Sequence[str] = (), images: str | None = None
) -> Facts:
    """The facts of a workspace whose `report/results.json` is written; of the rest, what is there.

    stages: names in the order they run (default: those of STAGES). images: the photographs' table (default: the workspace's).
    """
    read = _json(workspace, "report", "results.json")
    if read is None:
        raise FileNotFoundError(storage.join(workspace, "report", "results.json"))
    records = {name: record for name in stages or STAGES if (record := _json(workspace, "stages", f"{name}.json"))}
    photographs = tables.read_commit(images or storage.join(workspace, "images"))
    examples = records.get("examples", {}).get("summary", {})
    return Facts(
        title=title,
        workspace=workspace,
        results=read,
        pictures={name: data for name in _PICTURES if (data := _bytes(workspace, "report", f"{name}.png"))},
        splits=_splits(photographs),
        digest=str(photographs.extra.get("digest", "")) if photographs else "",
        crops={name.replace("_", " "): int(count) for name, count in examples.items() if isinstance(count, int)},
        rejects=_rejects(storage.join(workspace, "rejects")),
        seconds={name: float(record["seconds"]) for name, record in records.items()},
        proposals=_json(workspace, "report", "proposals.json") or {},
        settings=settings,
        code=code,
        when=datetime.now(UTC),
    )


def result_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The five results as text, in the paper's order: title, mean IoU, pixel accuracy, the paper's mean IoU; per cent, – for none."""
    rows = results["rows"]
    return [
        (title, percent(rows[name]["mean_iou"]), percent(rows[name]["pixel_accuracy"]), percent(PAPER[name]))
        for name, title in TITLES.items()
        if name in rows
    ]


def percent(fraction: float | None) -> str:
    """0.7254 as 72.5; None as –."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def _splits(photographs: tables.Commit | None) -> dict[str, int]:
    found: Counter[str] = Counter()
    for part in photographs.parts if photographs else ():
        for group in part.row_groups:
            found.update(group.splits)
    order = ("train", "dev", "val")
    return {name: found[name] for name in sorted(found, key=lambda name: (*order, name).index(name))}


def _rejects(table: str) -> Rejects:
    if tables.read_commit(table) is None:
        return Rejects()
    counts: Counter[str] = Counter()
    first: dict[str, list[str]] = {}
    for row in tables.iter_rows(table, ["image_id", "path", "reason"]):
        reason = str(row["reason"])
        counts[reason] += 1
        known = first.setdefault(reason, [])
        if len(known) < _FIRST_REJECTS:
            known.append(str(row["path"] or row["image_id"]))
    return Rejects(dict(counts.most_common()), first)


def _bytes(*place: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(*place))
    except FileNotFoundError:
        return None


def _json(*place: str) -> Any:
    data = _bytes(*place)
    return None if data is None else json.loads(data)
