"""Render `report/index.html`, the page with the results of a pipeline run.

The page is self-contained: its images are embedded, and it loads nothing from elsewhere. Its only script sorts tables. Links lead
to pictures of the evaluated images beside it.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.reporting.champion_report import changes_sentence, class_changes, summary_sentence
from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import (
    CHARTS,
    IMAGE_FIGURES,
    METRICS,
    STAGE_DESCRIPTIONS,
    RunSummary,
    duration,
    percent,
    result_rows,
    signed_points,
)

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "index.html"

_MAX_REASONS = 12
_MAX_CELLS = 60_000  # of a table of images, so that browsers show and sort it quickly; its Parquet file has all images

Cell = str | tuple[str, str]
"""A cell of a table: a text, or a text and the address that it links to."""


def render_report(run: RunSummary) -> str:
    """Render the report of a pipeline run as HTML. No file is written.

    All texts are escaped. The page's content security policy forbids external addresses, and all scripts but that for sorting
    tables.

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
        "every_image": "Every image" if run.images else "",
        "images": "Images" if any(name in run.figures for name in IMAGE_FIGURES) else "",
        "charts": "Charts" if any(name in run.figures for name in CHARTS) else "",
        "data": "Data",
        "time": "Time" if run.seconds else "",
        "settings": "Settings",
    }
    counts = [(f"images: {name}", count) for name, count in run.splits.items()]
    counts += [(f"crops: {name}", count) for name, count in run.crops.items()]
    reasons = list(run.rejects.counts.items())[:_MAX_REASONS]
    script = _sort_script() if run.images or run.champion_images else ""
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
            changes_sentence=changes_sentence(run.against_champion) if run.champion_images else "",
            champion_images=champion_image_table(run.champion_images),
            every_image=image_table(run.images, run.results["classes"]),
            metrics=METRICS,
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
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
    made.filters["points"] = lambda fraction: f"{percent(fraction)} points"
    made.filters["title_of"] = RESULT_TITLES.__getitem__
    made.filters["proposals_sentence"] = proposals_sentence
    return made


@cache
def _sort_script() -> str:
    """Return the script of the page, which sorts tables."""
    from markupsafe import Markup

    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, "sort.js")[0])


@dataclass(frozen=True)
class ImageTable:
    """A table of images for the page.

    Attributes:
        headers: headings of the columns.
        rows: the cells of each row; the first cell has the image.
        left_out: number of images that would have made the page too large.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left_out: int

    @classmethod
    def of(cls, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Self:
        """Make a table of as many of the rows as the page has room for, from the first on."""
        most = max(1, _MAX_CELLS // len(headers))
        return cls(headers, rows[:most], max(0, len(rows) - most))


def image_table(images: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> ImageTable:
    """Make the table of all evaluated images, lowest mean IoU first.

    Args:
        images: a dict of measures for each image, a row of `report/images.parquet`.
        classes: class names, ordered by id. Those that occur in no image have no column.

    Returns:
        The table. Its columns are the image, its measures in per cent, and the IoU of each class, "" if the class does not occur.
    """
    measures = {
        f"mean_iou.{DECISIVE_RESULT}": "mean IoU",
        **{name: title for name, title in METRICS.items() if name != "mean_iou"},
        "confidence": "confidence",
        "entropy": "entropy",
        "disagreement": "networks disagree",
        "boundary_doubt": "doubt at boundaries",
    }
    shown = [name for name in classes if any(row[f"iou.{name}"] is not None for row in images)]
    worst_first = sorted(images, key=lambda row: _with_none_last(row[f"mean_iou.{DECISIVE_RESULT}"]))
    rows = [
        (
            _linked(row["image_id"], row["picture"]),
            *(percent(row[name]) for name in measures),
            *("" if row[f"iou.{name}"] is None else percent(row[f"iou.{name}"]) for name in shown),
        )
        for row in worst_first
    ]
    return ImageTable.of(("image", *measures.values(), *shown), rows)


def champion_image_table(images: Sequence[Mapping[str, Any]]) -> ImageTable:
    """Make the table of the images on which the new model and the champion are compared, largest fall of the mean IoU first.

    Args:
        images: a dict of measures for each image, a row of `report/against_champion.parquet`.
    """
    mean_iou, boundary_f = ((f"{name}: champion", "new model", "change") for name in ("mean IoU", "boundary F"))
    headers = ("image", *mean_iou, *boundary_f, "pictures", "")
    rows = []
    for row in sorted(images, key=lambda row: _with_none_last(row["change"])):
        before, after = row["boundary_f.champion"], row["boundary_f.challenger"]
        rows.append(
            (
                row["image_id"],
                percent(row["mean_iou.champion"]),
                percent(row["mean_iou.challenger"]),
                _change(row["change"]),
                percent(before),
                percent(after),
                _change(None if before is None or after is None else after - before),
                _linked("champion", row["picture.champion"]),
                _linked("new model", row["picture.challenger"]),
            )
        )
    return ImageTable.of(headers, rows)


def _with_none_last(value: float | None) -> tuple[bool, float]:
    """Return a key by which numbers are sorted, with None after all of them."""
    return value is None, 0.0 if value is None else value


def _change(value: float | None) -> str:
    """Format a change in percentage points with its sign, or None as "–"."""
    return "–" if value is None else signed_points(value)


def _linked(text: str, picture: str) -> Cell:
    """Return a cell with a text that links to a picture, a path relative to the report's folder; "" for no link."""
    return (text, quote(picture)) if picture else text


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
