"""Render `report/index.html`, the page with the results of a pipeline run.

The page is self-contained: its images are embedded, it has no scripts, and it loads nothing from elsewhere.
"""

import base64
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from deconvnet.reporting.champion_report import class_changes, summary_sentence
from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import CHARTS, IMAGE_FIGURES, STAGE_DESCRIPTIONS, RunSummary, duration, percent, result_rows

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "index.html"

_MAX_REASONS = 12


def render_report(run: RunSummary) -> str:
    """Render the report of a pipeline run as HTML. No file is written.

    All texts are escaped, and the page's content security policy forbids scripts and external addresses.

    Args:
        run: the summary of the pipeline run.

    Returns:
        The content of `report/index.html`.
    """
    rows = run.results["rows"]
    results = [name for name in RESULT_TITLES if name in rows]
    sections = {
        "results": "Results",
        "champion": "Against the champion" if run.against_champion or run.decision else "",
        "images": "Images" if any(name in run.figures for name in IMAGE_FIGURES) else "",
        "charts": "Charts" if any(name in run.figures for name in CHARTS) else "",
        "data": "Data",
        "time": "Time" if run.seconds else "",
        "settings": "Settings",
    }
    counts = [(f"images: {name}", count) for name, count in run.splits.items()]
    counts += [(f"crops: {name}", count) for name, count in run.crops.items()]
    reasons = list(run.rejects.counts.items())[:_MAX_REASONS]
    return (
        _environment()
        .get_template("report.html")
        .render(
            run=run,
            sections={name: title for name, title in sections.items() if title},
            results=results,
            result_rows=result_rows(run.results),
            class_rows=[(name, *(percent(rows[row]["iou"].get(name)) for row in results)) for name in run.results["classes"]],
            summary_sentence=summary_sentence(run.against_champion) if run.against_champion else "",
            class_changes=class_changes(run.against_champion) if run.against_champion else [],
            image_figures=IMAGE_FIGURES,
            charts=CHARTS,
            counts=[(name, f"{count:,}") for name, count in counts],
            reject_rows=[(reason, f"{count:,}", ", ".join(run.rejects.examples[reason])) for reason, count in reasons],
            more_reasons=len(run.rejects.counts) - len(reasons),
            stages=STAGE_DESCRIPTIONS,
            longest=max(run.seconds.values(), default=0.0) or 1.0,
            settings=[("workspace", run.workspace), ("code", run.code), *_flatten(run.settings)],
        )
    )


@cache
def _environment() -> "Environment":
    """Return the jinja2 environment with this package's templates and filters. It is created by the first call only."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(loader=PackageLoader("deconvnet.reporting"), autoescape=True, undefined=StrictUndefined)
    made.filters["base64"] = lambda data: base64.b64encode(data).decode()
    made.filters["duration"] = duration
    made.filters["title_of"] = RESULT_TITLES.__getitem__
    made.filters["proposals_sentence"] = proposals_sentence
    return made


def proposals_sentence(proposals: Mapping[str, Any]) -> str:
    """Summarise in one sentence how many annotated objects the best proposals (boxes that may contain an object) find.

    Args:
        proposals: the content of `report/proposals.json`: recalls such as "recall_50_iou70" (share of the objects that the first
            50 boxes find at IoU 0.7), and `objects`, the number of objects.

    Returns:
        A sentence about the first 50 boxes of each image. If the recall of 50 boxes was not measured, it is about the smallest
        number of boxes measured. If there is no recall, it is "".
    """
    counts = sorted(int(name.split("_")[1]) for name in proposals if name.startswith("recall_") and name.endswith("_iou50"))
    if not counts:
        return ""
    count = 50 if 50 in counts else counts[0]
    half, most = (f"{100 * proposals[f'recall_{count}_iou{iou}']:.0f} %" for iou in (50, 70))
    return f"The first {count} boxes find {half} of {proposals['objects']:,} objects at IoU 0.5, {most} at 0.7."


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings to pairs of texts. Settings that are None are left out.

    Args:
        settings: values of settings by name. A value that is a mapping is a section of further settings.
        prefix: text to put before every name, such as "train.stage1.".

    Yields:
        The dotted name of a setting, such as "train.stage1.max_steps", and its value as text. The items of a list are joined by
        commas.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
