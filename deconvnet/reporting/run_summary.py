"""Summarise a pipeline run from the files in its workspace, for the HTML report and for the run's description in MLflow."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deconvnet.evaluation.image_measures import IMAGES_FILE, read_images
from deconvnet.reporting.figure import RESULT_TITLES
from infra import storage
from infra.storage import tables

PAPER_MEAN_IOU = {"fcn8s": 0.622, "deconvnet": 0.696, "deconvnet_crf": 0.705, "edeconvnet": 0.717, "edeconvnet_crf": 0.725}
"""Mean IoU of each result on VOC 2012's test set when trained on VOC's data alone (Noh et al., ICCV 2015, Table 1)."""

METRICS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "boundary_f": "boundary F",
    "boundary_iou": "Boundary IoU",
}
"""Titles of the metrics, by their names in `results.json`. Files of earlier versions have only the first two."""

STAGE_DESCRIPTIONS = {
    "prepare": "Checks the images and their masks and writes them to the table `images`, each with its split: train, dev (for "
    "choices during training), val or test (for the final results only). Unusable images go to the table `rejects`, with "
    "the reason.",
    "proposals": "Finds boxes that may contain an object (EdgeBox), best first.",
    "examples": "Cuts DeconvNet's training crops: stage 1 around annotated objects, stage 2 at proposals.",
    "fcn8s_start": "Fits VGG-16's ImageNet weights to FCN-8s (width, batch norm) as its initial weights.",
    "stage1_start": "Fits VGG-16's ImageNet weights to DeconvNet (width, batch norm) as its initial weights.",
    "stage2_start": "Fits VGG-16's ImageNet weights to DeconvNet (width, batch norm) as its initial weights.",
    "fcn8s": "Trains FCN-8s, the other network of the ensemble, on whole images.",
    "stage1": "Trains DeconvNet on easy crops: one object each, centred.",
    "stage2": "Trains DeconvNet on crops at proposals or windows, as it will see them when predicting.",
    "evaluate": "Predicts the val images with the paper's five methods, measures the predictions, and draws the report.",
    "register": "Registers the ensemble in MLflow's model registry.",
    "champion": "Measures the model that is champion now on the same val images.",
    "verdict": "Compares the two models and promotes the new one if it is better by the rule of `retrain.*`.",
}
"""Markdown texts that explain what each pipeline stage does, by name of the stage."""

IMAGE_FIGURES = {
    "against_champion": (
        "Gained and lost most",
        "The images whose mean IoU rose and fell most from the champion to the new model, by EDeconvNet+CRF.",
    ),
    "comparison": (
        "Side by side",
        "The images with the best, the median and the worst mean IoU of EDeconvNet+CRF, with ground truth and predictions.",
    ),
    "wins": (
        "Where each network is better",
        "Images on which one network is furthest ahead of the other, or the ensemble is furthest ahead of both.",
    ),
    "instances": (
        "Proposal by proposal",
        "DeconvNet's prediction from more and more proposals, from the largest box to the smallest.",
    ),
    "unpooling": (
        "Unpooling and deconvolution",
        "DeconvNet's decoder on one crop: the map of each layer that is most active on the object, from coarse to fine.",
    ),
    "examples_stage1": ("Training crops of stage 1", "Crops around annotated objects, each beside its mask."),
    "examples_stage2": ("Training crops of stage 2", "Crops at proposals, each beside its mask."),
}
"""Titles and explanations of the figures of images, by file name without suffix, in the report's order."""

CHARTS = {
    "iou_by_class": ("IoU by class", "Intersection over union of every class, for the five results."),
    "iou_by_proposals": (
        "IoU by number of proposals",
        "DeconvNet's mean IoU by the number of proposals that it uses in each image. If an image has fewer boxes, or "
        "segment.early_exit stops before, its last mask is used. Mirrored images (segment.flip) are not used here.",
    ),
    "iou_by_size": ("IoU by object size", "IoU of objects by the share of the image that they cover."),
    "confusion": ("Confusion", "How EDeconvNet+CRF divides each true class's pixels among the classes."),
    "calibration": (
        "Calibration",
        "Pixels grouped by the probability of the class that EDeconvNet+CRF predicts, and the share of them whose class is "
        "right. On the diagonal both are equal; below it, the network is overconfident.",
    ),
    "proposals": ("Recall of the proposals", "Share of the objects that the first boxes find, by number of boxes and by IoU."),
    "training_curves": (
        "Training",
        "Loss, pixel accuracy on training batches, and mean IoU on dev (FCN-8s: images, DeconvNet: crops), by optimiser step.",
    ),
}
"""Titles and explanations of the charts, by file name without suffix, in the report's order."""

_EXAMPLES_PER_REASON = 3
_SPLITS = ("train", "dev", "val", "test")


@dataclass(frozen=True)
class Rejects:
    """The inputs of a run that could not be used, grouped by reason.

    Attributes:
        counts: number of inputs by reason, most frequent first.
        examples: up to three inputs for each reason, as paths or ids.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the number of rejected inputs for all reasons together."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class RunSummary:
    """The facts about a pipeline run that the report and MLflow's description show.

    Attributes:
        title: heading of the report.
        workspace: URI of the workspace, which is the folder of all files of the run.
        results: the content of `report/results.json`, which has the metrics of the five results. A result is a way of predicting:
            with FCN-8s, with DeconvNet or with their ensemble; for DeconvNet and the ensemble, with or without CRF.
        figures: contents of the PNGs in the folder `report/`, by file name without suffix.
        splits: number of images by name of the split, such as "train".
        digest: digest of all images and masks; "" if unknown.
        crops: number of training crops by name of their table: "stage1", "stage1 dev", "stage2" or "stage2 dev". The number is
            the stage of DeconvNet's training, and "dev" tables are not trained on.
        rejects: the inputs that could not be used.
        seconds: duration of each finished stage of the pipeline in seconds, by stage name, in the order in which they run.
        step_seconds: for each training stage, the mean seconds per step by phase (`deconvnet.training.meter.PHASES`).
        proposals: the content of `report/proposals.json`; {} if there is no such file.
        against_champion: the content of `report/against_champion.json`, the comparison with the registered model that was in use;
            {} if there is no such file.
        images: a dict of measures for each evaluated image, a row of `report/images.parquet` (see
            `deconvnet.evaluation.image_measures`); empty if there is no such file.
        champion_images: the same of `report/against_champion.parquet`, with the measures of both models.
        decision: the sentence that says why the new model was promoted or not; "" if it was not compared.
        settings: the settings of the run as JSON values, without secrets.
        code: version of the code that ran.
        when: time at which this summary was made, in UTC.
    """

    title: str
    workspace: str
    results: Mapping[str, Any]
    figures: Mapping[str, bytes]
    splits: Mapping[str, int]
    digest: str
    crops: Mapping[str, int]
    rejects: Rejects
    seconds: Mapping[str, float]
    step_seconds: Mapping[str, Mapping[str, float]]
    proposals: Mapping[str, Any]
    against_champion: Mapping[str, Any]
    images: Sequence[Mapping[str, Any]]
    champion_images: Sequence[Mapping[str, Any]]
    decision: str
    settings: Mapping[str, Any]
    code: str
    when: datetime


def read_run_summary(
    workspace: str, *, title: str, settings: Mapping[str, Any], code: str, stages: Sequence[str] = ()
) -> RunSummary:
    """Read the summary of a pipeline run from the files in its workspace.

    The run must have evaluated the networks, but other files may be missing.

    Args:
        workspace: URI of the workspace, which is the folder of all files of the run.
        title: heading of the report.
        settings: the settings of the run as JSON values, without secrets.
        code: version of the code that ran.
        stages: names of the pipeline's stages in the order in which they run. If it is empty, all stages of training and
            retraining are used.

    Returns:
        The summary. Fields whose file is missing are empty.

    Raises:
        FileNotFoundError: if the workspace has no `report/results.json`.
    """
    results = _read_json(workspace, "report", "results.json")
    if results is None:
        raise FileNotFoundError(storage.join(workspace, "report", "results.json"))
    names = stages or STAGE_DESCRIPTIONS
    records = {name: record for name in names if (record := _read_json(workspace, "stages", f"{name}.json"))}
    prepared = records.get("prepare", {})
    crops = records.get("examples", {}).get("summary", {})
    return RunSummary(
        title=title,
        workspace=workspace,
        results=results,
        figures={name: data for name in (*IMAGE_FIGURES, *CHARTS) if (data := _read_bytes(workspace, "report", f"{name}.png"))},
        splits=dict(prepared.get("summary", {}).get("counts", {})),
        digest=str(prepared.get("key", "")),
        crops={name.replace("_", " "): int(count) for name, count in crops.items() if isinstance(count, int)},
        rejects=_read_rejects(storage.join(workspace, "rejects")),
        seconds={name: float(record["seconds"]) for name, record in records.items()},
        step_seconds={name: found for name, record in records.items() if (found := record["summary"].get("step_seconds"))},
        proposals=_read_json(workspace, "report", "proposals.json") or {},
        against_champion=_read_json(workspace, "report", "against_champion.json") or {},
        images=_read_rows(workspace, "report", IMAGES_FILE),
        champion_images=_read_rows(workspace, "report", "against_champion.parquet"),
        decision=_decision(records.get("verdict", {}).get("summary", {})),
        settings=settings,
        code=code,
        when=datetime.now(UTC),
    )


def result_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the metrics of the five results, and the mean IoU in Noh et al. (ICCV 2015), as rows of a table.

    Args:
        results: the content of `report/results.json`: a dict with `dataset` (name), `images` (number), `classes` (names) and
            `rows`. The rows are metrics by result name, see `METRICS`.

    Returns:
        A tuple (title, one text for each of `METRICS`, mean IoU in the paper) for each result, in the paper's order. The title is
        a text such as "DeconvNet+CRF". The numbers are texts in per cent, or "–" for None.
    """
    rows = results["rows"]
    return [
        (title, *(percent(rows[name].get(metric)) for metric in METRICS), percent(PAPER_MEAN_IOU[name]))
        for name, title in RESULT_TITLES.items()
        if name in rows
    ]


def percent(fraction: float | None) -> str:
    """Format a fraction in per cent with one decimal and without a "%" sign: 0.7254 as "72.5", None as "–"."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def signed_points(fraction: float) -> str:
    """Format a change of a fraction as percentage points with its sign and one decimal: 0.015 as "+1.5"."""
    return f"{100 * fraction:+.1f}"


def duration(seconds: float) -> str:
    """Format a duration in seconds as text, such as "8 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def _decision(decision: Mapping[str, Any]) -> str:
    """Return a sentence that says whether the new model was promoted, and why.

    Args:
        decision: the summary that the stage `verdict` stored, with `version`, `promoted` and `why`; {} if there is none.

    Returns:
        The sentence; "" if `decision` is empty.
    """
    if not decision:
        return ""
    return f"Version {decision['version']} is {'' if decision['promoted'] else 'not '}promoted: {decision['why']}."


def _read_rejects(table: str) -> Rejects:
    """Read a table `rejects`, given its URI, and group its rows by reason. The result is empty if there is no table."""
    if tables.read_commit(table) is None:
        return Rejects()
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for row in tables.iter_rows(table, ["image_id", "path", "reason"]):
        reason = str(row["reason"])
        counts[reason] += 1
        known = examples.setdefault(reason, [])
        if len(known) < _EXAMPLES_PER_REASON:
            known.append(str(row["path"] or row["image_id"]))
    return Rejects(dict(counts.most_common()), examples)


def _read_bytes(*parts: str) -> bytes | None:
    """Return the content of the file whose URI is made by joining `parts`, or None if it does not exist."""
    try:
        return storage.read_bytes(storage.join(*parts))
    except FileNotFoundError:
        return None


def _read_rows(*parts: str) -> list[dict[str, Any]]:
    """Return the rows of the Parquet file whose URI is made by joining `parts`, or [] if the file does not exist."""
    uri = storage.join(*parts)
    return read_images(uri) if storage.exists(uri) else []


def _read_json(*parts: str) -> Any:
    """Return the value in the JSON file whose URI is made by joining `parts`, or None if the file does not exist."""
    data = _read_bytes(*parts)
    return None if data is None else json.loads(data)
