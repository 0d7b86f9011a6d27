"""Write the model card of a version of the registered model: what it is for, its data, its results, its limits, and licences.

A card is Markdown with a YAML header, like Hugging Face's model cards (the idea is by M. Mitchell et al., Model Cards for Model
Reporting, FAT* 2019). It states only facts that the run that trained the model has recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import yaml

from deconvnet.reporting.run_summary import METRICS, RunSummary, percent
from deconvnet.tracking.texts.descriptions import escaped, results_table

CARD_FILE = "model_card.md"
"""Name of the card among the files of a registered model."""
_FINAL = "edeconvnet_crf"
_WORST = 3  # number of classes that are named as the least accurate
_REASONS = 5  # number of reasons of rejection that are listed


def model_card(name: str, run: RunSummary, sizes: Mapping[str, Any] | None = None) -> str:
    """Write the model card of a version.

    Args:
        name: name of the registered model.
        run: summary of the workspace that trained it, with its results, data and settings.
        sizes: the entry `sizes` of `report/analysis.json`, the IoU of objects by their size; None if it is not known.

    Returns:
        Markdown. Names that the user chose are escaped.
    """
    return "\n".join(
        [
            *_head(name, run.results),
            f"# {escaped(name)}",
            "",
            "An ensemble of DeconvNet (Noh, Hong, Han, ICCV 2015) and FCN-8s (Long, Shelhamer, Darrell, CVPR 2015), refined by a "
            f"dense CRF (EDeconvNet+CRF). It predicts one of {len(run.results['classes'])} classes for each pixel of an image.",
            "",
            f"Trained by the run *{escaped(run.title)}* with the code {escaped(run.code)}; this card is of {run.when:%Y-%m-%d}. "
            "It states only what that run has recorded.",
            *_section("Intended use", _use(run)),
            *_section("Data", _data(run)),
            *_section("Training", _training(run.settings)),
            *_section("Results", _results(run.results)),
            *_section("Limits", _limits(run, sizes or {})),
            *_section("Licences", _licences(run)),
            "",
        ]
    )


def _head(name: str, results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the YAML header, which Hugging Face uses to list models. It names no licence (see `_licences`)."""
    row = results["rows"].get(_FINAL, {})
    metrics = [{"type": metric, "value": round(row[metric], 4)} for metric in METRICS if row.get(metric) is not None]
    measured = {
        "task": {"type": "image-segmentation"},
        "dataset": {"name": str(results["dataset"]), "type": str(results["dataset"])},
        "metrics": metrics,
    }
    head = {
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "deconvnet", "mlflow"],
        "model-index": [{"name": name, "results": [measured]}],
    }
    return ["---", *yaml.safe_dump(head, sort_keys=False, allow_unicode=True).splitlines(), "---", ""]


def _section(title: str, lines: Iterator[str]) -> list[str]:
    """Return the lines of a section with its heading."""
    return ["", f"## {title}", "", *(line.rstrip() for line in lines)]


def _use(run: RunSummary) -> Iterator[str]:
    """Yield the lines about the intended use."""
    dataset = escaped(str(run.results["dataset"]))
    yield f"For images like those of {dataset}, on which it was measured, and these classes, by id from 0: "
    yield f"{escaped(', '.join(run.results['classes']))}."
    yield ""
    yield "Every pixel gets one of these classes, even where an image shows something else. The model was not tested on other "
    yield "kinds of images, or for uses in which a wrong mask does harm."
    yield ""
    yield "Input: an encoded image (column `image`). Output: a PNG of class ids (`mask`), or an error message (`error`). The "
    yield "model loads with `mlflow.pyfunc.load_model`; its files include the project's code, and `requirements.txt` with the "
    yield "packages that the code needs."


def _data(run: RunSummary) -> Iterator[str]:
    """Yield the lines about the data."""
    yield from _table(("split", "images"), [(escaped(name), f"{count:,}") for name, count in run.splits.items()])
    yield ""
    dev = (
        " Choices during training were made on *dev*, a part of the training data that was set aside."
        if run.splits.get("dev")
        else ""
    )
    yield f"The networks were trained only on *train*.{dev} The results were measured on "
    yield f"*{escaped(str(run.results['dataset']))}*, {run.results['images']:,} images."
    if run.rejects.total:
        yield ""
        reasons = list(run.rejects.counts.items())
        listed = "; ".join(f"{escaped(reason)} ({count:,})" for reason, count in reasons[:_REASONS])
        more = f"; and {len(reasons) - _REASONS} other reasons" if len(reasons) > _REASONS else ""
        yield f"{run.rejects.total:,} inputs were left out: {listed}{more}."
    if run.digest:
        yield ""
        yield f"Digest of the images and masks: `{run.digest}`."


def _training(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about the training. What the settings don't say is left out."""
    model, init = settings.get("model", {}), settings.get("init", {})
    if init.get("from"):
        start = f"Both networks start from `{init['from']}`."
    elif model.get("vgg16"):
        file = _file_name(model["vgg16"])
        start = f"Both networks start from VGG-16's weights in the file `{file}`, pretrained by others on ImageNet."
    else:
        start = "Both networks start from random weights."
    yield start
    if "input_size" in model:
        whole = f"FCN-8s from whole images of up to {model.get('fcn_input_size', '?')} px"
        yield f"DeconvNet learns from crops of {model['input_size']} px, {whole}. Seed: {settings.get('seed', '?')}."
    yield "All settings are in the run's report (`report/index.html`)."


def _results(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines with the results."""
    yield from results_table(results)
    yield ""
    yield "The paper's column is for the test set of VOC 2012. Boundary F: contours within 0.0075 of the diagonal; Boundary "
    yield "IoU: bands of 0.02 of the diagonal. Void pixels are left out. EDeconvNet+CRF by class, in per cent:"
    yield ""
    row = results["rows"].get(_FINAL, {})
    by_class = ("iou", "boundary_f_by_class", "boundary_iou_by_class")
    cells = [(escaped(name), *(percent(row.get(each, {}).get(name)) for each in by_class)) for name in results["classes"]]
    yield from _table(("class", "IoU", "boundary F", "Boundary IoU"), cells)
    if (error := results.get("expected_calibration_error")) is not None:
        yield ""
        yield f"Its probabilities are off by {percent(error)} points on average (expected calibration error)."


def _limits(run: RunSummary, sizes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about limits: those that the results show, and those that the settings impose."""
    iou = run.results["rows"].get(_FINAL, {}).get("iou", {})
    known = sorted((value, name) for name, value in iou.items() if value is not None)
    if known:
        worst = ", ".join(f"{escaped(name)} {percent(value)} %" for value, name in known[:_WORST])
        yield f"* Least accurate classes (IoU): {worst}."
    if unmeasured := [escaped(name) for name in run.results["classes"] if iou.get(name) is None]:
        yield f"* Not measured, because no evaluated image shows them: {', '.join(unmeasured)}."
    found = sizes.get("mean_iou", {}).get(_FINAL, [])
    parts = [
        f"{percent(value)} % if they cover {100 * low:g}–{100 * high:g} % of the image ({count:,})"
        for (low, high), count, value in zip(pairwise(sizes.get("edges", ())), sizes.get("objects", ()), found, strict=True)
        if value is not None
    ]
    if parts:
        yield f"* Mean IoU of objects by size (their number): {', '.join(parts)}."
    settings = run.settings
    if side := settings.get("segment", {}).get("max_side"):
        yield f"* Images whose longer side exceeds {side:,} px are predicted at that size; their masks are scaled up."
    if pixels := settings.get("data", {}).get("max_pixels"):
        yield f"* Images of more than {pixels:,} pixels are refused."
    yield f"* The results are of one training, measured on {run.results['images']:,} images; another seed gives other results."


def _licences(run: RunSummary) -> Iterator[str]:
    """Yield the lines about licences. Those of the user's data are not known to this program."""
    settings = run.settings
    yield "* The code among the model's files: Apache-2.0."
    learned = (
        f"* The weights were learned from the images and masks of *{escaped(str(run.results['dataset']).rpartition(' ')[0])}*"
    )
    if settings.get("init", {}).get("from"):
        yield f"{learned}, and from what `{settings['init']['from']}` was learned from."
    elif vgg16 := settings.get("model", {}).get("vgg16"):
        yield f"{learned}, and from VGG-16's weights (`{_file_name(vgg16)}`)."
    else:
        yield f"{learned}."
    proposals = settings.get("proposals", {})
    if proposals.get("edges") == "forest":
        if proposals.get("edge_model"):
            yield f"* The edge detector `{_file_name(proposals['edge_model'])}` is among the model's files."
        else:
            yield "* The edge detector among the model's files was learned from PASCAL VOC 2012's images, SBD's masks and "
            yield "  BSDS500, whose terms are non-commercial research and educational purposes."
    yield "* This program does not know the terms of these data and weights. Check them before you use the model."


def _file_name(uri: str) -> str:
    """Return the last part of a path or URI."""
    return uri.rstrip("/").rpartition("/")[2]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *rows)]
