"""The report: its content, that it runs and fetches nothing, and how a browser shows it."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from deconvnet.reporting.report import render_report
from deconvnet.reporting.run_summary import Rejects
from tests.browser import Browser, browser, missing
from tests.deconvnet.example_run import SCRIPT_TAG, example_images, example_results, example_summary, grey_png


class Reader(HTMLParser):
    """Checks that tags are closed in order; collects tags, URLs, alt texts, and table rows as lists of texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.urls: list[str] = []
        self.alts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.urls.append(value)
            if name == "alt":
                self.alts.append(value)
            assert not name.startswith("on")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_report_of_a_retraining_shows_the_interval_the_classes_and_the_decision() -> None:
    comparison = {
        "rise": 0.02,
        "lower": 0.005,
        "upper": 0.035,
        "images": 60,
        "mean_iou": {"champion": 0.5, "challenger": 0.52},
        "classes": [["cat", 0.5, 0.75], [SCRIPT_TAG, None, None]],
    }
    figures = {"against_champion": grey_png()}
    changes = {"against_champion": comparison, "figures": figures, "decision": "Version 3 is promoted: it is better."}
    html = render_report(example_summary(**changes))
    read = Reader(html)
    assert "Version 3 is promoted" in html and "paired bootstrap" not in html, "the decision names the interval"
    undecided = render_report(example_summary(**changes | {"decision": "", "figures": {}}))
    assert "(90 % interval +0.5 to +3.5, by a paired bootstrap over 60 images)" in undecided and "No image's mean" in undecided
    assert ["cat", "50.0", "75.0", "+25.0"] in read.rows and [SCRIPT_TAG, "–", "–", "–"] in read.rows
    assert any(alt.startswith("Gained and lost most") for alt in read.alts)
    other_classes = render_report(example_summary(decision="Version 3 is not promoted: its classes differ."))
    assert "its classes differ" in other_classes and "paired bootstrap" not in other_classes
    assert "Against the champion" not in render_report(example_summary())


def test_the_report_shows_results_data_rejects_times_and_settings() -> None:
    results = example_results()
    for number, row in enumerate(results["rows"].values(), 1):
        row["iou"] = {**row["iou"], "cat": number / 8}
    read = Reader(render_report(example_summary(results=results)))
    assert ["EDeconvNet+CRF", "61.2", "87.5", "–", "–", "72.5"] in read.rows and [
        "FCN-8s",
        "50.1",
        "87.5",
        "–",
        "–",
        "62.2",
    ] in read.rows
    assert ["class", "FCN-8s", "DeconvNet", "DeconvNet+CRF", "EDeconvNet", "EDeconvNet+CRF"] in read.rows
    assert ["cat", "12.5", "25.0", "37.5", "50.0", "62.5"] in read.rows and [SCRIPT_TAG, *["–"] * 5] in read.rows
    assert ["images: train", "9,000"] in read.rows and ["crops: stage1", "70,000"] in read.rows
    assert ["not an image", "4", "a.jpg, b.jpg"] in read.rows
    times = [["stage2", "2 h 05 min"], ["total", "2 h 05 min"], ["stage2", "0.5 s"]]  # of the stages, and of a training step
    assert [row[:2] for row in read.rows if row[0] in ("stage2", "total")] == times
    assert ["data.root", SCRIPT_TAG] in read.rows and ["classes", "x, y"] in read.rows and ["code", "c0ffee+"] in read.rows
    assert not any(row[0] == "data.limit" for row in read.rows)
    html = render_report(example_summary())
    assert "cats &amp; dogs val, 1,234 images · 23 November 2026 07:30 UTC · code c0ffee+</p>" in html
    assert "<p>5 inputs were rejected; the table" in html
    assert "<p>1 input was rejected; the table" in render_report(example_summary(rejects=Rejects({"x": 1}, {"x": ["a"]})))
    assert len(read.alts) == 2 and all(len(alt) > 20 for alt in read.alts)
    assert "The first 50 boxes find 90 % of 77 objects at IoU 0.5, 50 % at 0.7." in render_report(example_summary())


def test_the_report_runs_no_script_and_fetches_nothing() -> None:
    html = render_report(example_summary())
    read = Reader(html)
    assert not read.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in read.urls)
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html


def test_every_image_is_in_a_table_lowest_mean_iou_first_and_links_to_its_picture() -> None:
    read = Reader(render_report(example_summary(images=example_images())))
    start = next(i for i, row in enumerate(read.rows) if row[0] == "image")
    headers = ["image", "mean IoU", "pixel accuracy", "boundary F", "Boundary IoU", "confidence", "entropy", "networks disagree"]
    headers += ["doubt at boundaries", "background", "cat"]
    sure = ["75.0", "12.5", "6.2", "50.0"]
    assert read.rows[start : start + 5] == [
        headers,
        ["", "25.0", "25.0", "25.0", "25.0", *sure, "25.0", "25.0"],
        ["", "50.0", "50.0", "–", "50.0", *sure, "50.0", ""],
        ["a10", "90.0", "90.0", "90.0", "90.0", *sure, "90.0", ""],
        ["", "–", "–", "–", "–", *sure[:3], "–", "", ""],
    ]
    links = [url for url in read.urls if url.startswith("images/")]
    assert [unquote(url) for url in links] == [f"images/{name}.jpg" for name in ("a9", f"50% {SCRIPT_TAG}#1", "void")]
    assert not any(set(url) & set('<>#" ') for url in links)
    assert 'id="every_image"' not in render_report(example_summary())


def test_a_table_of_many_images_has_the_worst_and_counts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconvnet.reporting.report._MAX_CELLS", 23)  # two rows of eleven cells
    html = render_report(example_summary(images=example_images()))
    assert "2 further images are only in the Parquet file." in html and "a9" in html and "a10" not in html


def test_the_only_script_sorts_tables_and_nothing_else_may_run() -> None:
    """The content security policy has the digest of the script, so a browser runs no other."""
    html = render_report(example_summary(images=example_images()))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in html
    assert "sortable" in script and not re.search(r"https?://|fetch|import", script)


COMPARISON = {
    **{"rise": 0.0, "lower": 0, "upper": 0, "images": 3, "mean_iou": {"champion": 0.5, "challenger": 0.5}, "classes": []},
    **{"boundary_f": {"champion": 0.4, "challenger": 0.5}, "images_gained": 3, "images_lost": 2, "images_equal": 1},
}


def changed_images() -> list[dict[str, object]]:
    rows = {"cat1": (0.5, 0.25, 0.4, 0.5), "cat2": (0.5, 0.75, None, 0.5), "void": (None, None, None, None)}
    return [
        {
            "image_id": name,
            "mean_iou.champion": before,
            "mean_iou.challenger": after,
            "change": None if before is None else after - before,
            "boundary_f.champion": f,
            "boundary_f.challenger": new_f,
            "picture.champion": f"champion/images/{name}.jpg",
            "picture.challenger": f"images/{name}.jpg",
        }
        for name, (before, after, f, new_f) in rows.items()
    ]


def test_the_images_of_a_retraining_are_side_by_side_largest_fall_first() -> None:
    html = render_report(example_summary(against_champion=COMPARISON, champion_images=changed_images(), decision="Not promoted."))
    assert "Images by their own mean IoU: 3 gained, 2 lost, 1 as before." in html
    assert "Their boundary F is 50.0 % on average, the champion's 40.0 %." in html.replace("&#39;", "'")
    read = Reader(html)
    start = next(i for i, row in enumerate(read.rows) if row[0] == "image")
    assert [row[:7] for row in read.rows[start + 1 : start + 4]] == [
        ["cat1", "50.0", "25.0", "-25.0", "40.0", "50.0", "+10.0"],
        ["cat2", "50.0", "75.0", "+25.0", "–", "50.0", "–"],
        ["void", "–", "–", "–", "–", "–", "–"],
    ]
    assert [url for url in read.urls if "cat1" in url] == ["champion/images/cat1.jpg", "images/cat1.jpg"]


def test_every_link_of_the_page_leads_to_a_part_of_it() -> None:
    changes = {"against_champion": {**COMPARISON, "classes": [["cat", 0.5, 0.75]]}, "champion_images": changed_images()}
    figures = {"against_champion": grey_png(), "comparison": grey_png(), "iou_by_class": grey_png()}
    html = render_report(example_summary(**changes, images=example_images(), figures=figures, decision="Not promoted."))
    links, ids = re.findall(r'href="#([^"]*)"', html), re.findall(r' id="([^"]*)"', html)
    assert {*links} <= {*ids} and len({*ids}) == len(ids)
    assert links[:8] == ["results", "champion", "every_image", "images", "charts", "data", "time", "settings"]
    assert links[8:] == ["against_champion"]


def test_sections_without_content_are_left_out() -> None:
    html = render_report(
        example_summary(figures={}, seconds={}, proposals={}, digest="", crops={}, splits={}, rejects=Rejects(), settings={})
    )
    read = Reader(html)
    assert "Every image could be used." in html and not read.alts
    assert not any(f'id="{name}"' in html for name in ("images", "charts", "time"))


def test_a_bar_shows_what_a_training_step_takes() -> None:
    """One bar a training stage, whose parts have the colours of the legend; earlier workspaces have none."""
    html = render_report(example_summary())
    (row,) = (row for row in Reader(html).rows if row[:2] == ["stage2", "0.5 s"])
    assert row[0] == "stage2"
    bar = html[html.index('id="steps"') :]
    assert re.findall(r'class="part(\d)" style="width:([\d.]+)%"', bar) == [
        ("1", "4.00"),
        ("2", "80.00"),
        ("3", "0.00"),
        ("4", "16.00"),
    ]
    legend = re.findall(r'key part(\d)"></span>([^<]*)', bar)
    assert legend == [("1", "waiting for data 4 %"), ("2", "forward and backward 80 %"), ("4", "optimiser 16 %")]
    assert 'id="steps"' not in render_report(example_summary(step_seconds={}))


def test_a_bar_shows_how_long_a_stage_took_beside_the_longest() -> None:
    html = render_report(example_summary(seconds={"prepare": 1875.0, "stage2": 7500.0}))
    times = html[html.index('id="time"') : html.index('id="steps"')]
    assert re.findall(r'<span style="width:([\d.]+)%">', times) == ["25.0", "100.0"]
    assert 'id="time"' in render_report(example_summary(seconds={"prepare": 0.0})), "no time is no reason to fail"


def test_the_report_says_how_far_probabilities_are_off_if_this_was_measured() -> None:
    results = {**example_results(), "expected_calibration_error": 0.0456}
    sentence = "are off by 4.6 points on average (expected calibration error)"
    assert sentence in render_report(example_summary(results=results))
    for unknown in (example_results(), {**results, "expected_calibration_error": None}):
        assert "calibration" not in render_report(example_summary(results=unknown))


def test_only_the_first_reasons_of_rejection_are_shown() -> None:
    many = {f"reason {i}": 1 for i in range(1000)}
    html = render_report(example_summary(rejects=Rejects(many, {key: ["x.jpg"] for key in many})))
    assert "… and 988 other reasons" in html and "reason 12" not in html


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if why := missing():
        pytest.skip(why)
    with browser() as opened:
        yield opened


def test_a_browser_shows_the_report_without_requests_or_errors(window: Browser, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(render_report(example_summary()))
    window.requests(), window.console()
    window.open(file.as_uri())
    assert window.run("return [...document.images].map(i => [i.complete, i.naturalWidth])") == [[True, 1200]] * 2
    assert window.run("return document.title") == f"mine · {SCRIPT_TAG}"
    seen = window.text()
    assert "EDeconvNet+CRF" in seen and "61.2" in seen and "72.5" in seen and SCRIPT_TAG in seen
    assert "data.root" not in seen, "the settings are collapsed"
    assert window.requests() == [file.as_uri()], "the report requests nothing"
    assert window.console() == []


def test_a_click_on_a_head_sorts_a_table(window: Browser, tmp_path: Path) -> None:
    """Numbers largest first, then smallest first, cells without one last; names as people count. Nothing else runs."""
    file = tmp_path / "index.html"
    file.write_text(render_report(example_summary(images=example_images())))
    window.console()
    window.open(file.as_uri())

    def sorted_by(column: int) -> list[str]:
        window.run("document.querySelectorAll('table.sortable thead button')[arguments[0]].click()", column)
        found = window.run(
            "return [...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[0].textContent)"
        )
        return [name.partition(" ")[0] for name in found]

    assert sorted_by(1) == ["a10", "50%", "a9", "void"]
    assert sorted_by(1) == ["a9", "50%", "a10", "void"]
    assert sorted_by(3)[:2] == ["a10", "a9"]
    assert sorted_by(0) == ["50%", "a9", "a10", "void"] and sorted_by(0) == ["void", "a10", "a9", "50%"]
    assert window.run("return document.title") == f"mine · {SCRIPT_TAG}" and window.console() == []


@pytest.mark.parametrize("width", [1200, 500])
def test_the_report_fits_the_window(window: Browser, tmp_path: Path, width: int) -> None:
    """Wide tables and figures scroll by themselves; on a phone a figure stays large enough to read."""
    file = tmp_path / "index.html"
    file.write_text(render_report(example_summary(settings={"long": "x" * 3000})))
    window.resize(width, 900)
    window.open(file.as_uri())
    window.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert window.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert window.run("return document.images[0].clientWidth") >= 800
