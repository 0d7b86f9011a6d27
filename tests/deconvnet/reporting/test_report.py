"""The report's one page: what stands on it, that nothing in it can run or be fetched, and how a browser shows it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deconvnet.reporting.report import page
from deconvnet.reporting.run_summary import Rejects
from tests.browser import Browser, browser, missing
from tests.deconvnet.told import EVIL, facts


class Reader(HTMLParser):
    """Checks that tags close in order; gathers tags, attributes that hold addresses, alt texts, and tables as rows of texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
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
                self.addresses.append(value)
            if name == "alt":
                self.alts.append(value)
            assert not name.startswith("on")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_what_stands_on_it() -> None:
    read = Reader(page(facts()))
    assert ["EDeconvNet+CRF", "61.2", "87.5", "72.5"] in read.rows and ["FCN-8s", "50.1", "87.5", "62.2"] in read.rows
    assert ["cat", *["12.3"] * 5] in read.rows and [EVIL, *["–"] * 5] in read.rows
    assert ["photographs: train", "9,000"] in read.rows and ["crops: stage1", "70,000"] in read.rows
    assert ["not an image", "4", "a.jpg, b.jpg"] in read.rows
    assert [row[:2] for row in read.rows if row[0] in ("stage2", "all")] == [["stage2", "2 h 05 min"], ["all", "2 h 05 min"]]
    assert ["data.root", EVIL] in read.rows and ["classes", "x, y"] in read.rows and ["code", "c0ffee+"] in read.rows
    assert not any(row[0] == "data.limit" for row in read.rows)
    assert len(read.alts) == 2 and all(len(alt) > 20 for alt in read.alts)
    assert "The first 50 boxes find 90 % of 77 objects at IoU 0.5, 50 % at 0.7." in page(facts())


def test_nothing_runs_and_nothing_is_fetched() -> None:
    html = page(facts())
    read = Reader(html)
    assert not read.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in read.addresses)
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html


def test_what_is_not_there_is_left_out() -> None:
    html = page(facts(pictures={}, seconds={}, proposals={}, digest="", crops={}, splits={}, rejects=Rejects(), settings={}))
    read = Reader(html)
    assert "Every photograph could be used." in html and not read.alts
    assert not any(f'id="{name}"' in html for name in ("pictures", "charts", "timings"))


def test_a_thousand_reasons_are_not_all_shown() -> None:
    many = {f"reason {i}": 1 for i in range(1000)}
    html = page(facts(rejects=Rejects(many, {key: ["x.jpg"] for key in many})))
    assert "… and 988 other reasons" in html and "reason 12" not in html


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if why := missing():
        pytest.skip(why)
    with browser() as opened:
        yield opened


def test_in_a_browser(window: Browser, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page(facts()))
    window.requests(), window.console()
    window.open(file.as_uri())
    assert window.run("return [...document.images].map(i => [i.complete, i.naturalWidth])") == [[True, 1200]] * 2
    assert window.run("return document.title") == f"mine · {EVIL}"
    seen = window.text()
    assert "EDeconvNet+CRF" in seen and "61.2" in seen and "72.5" in seen and EVIL in seen
    assert "data.root" not in seen, "the settings are folded away"
    assert window.requests() == [file.as_uri()], "a page that works offline asks for nothing"
    assert window.console() == []


@pytest.mark.parametrize("width", [1200, 500])
def test_it_fits_the_window(window: Browser, tmp_path: Path, width: int) -> None:
    """Wide things scroll in themselves; a phone's picture stays large enough to read."""
    file = tmp_path / "index.html"
    file.write_text(page(facts(settings={"long": "x" * 3000})))
    window.size(width, 900)
    window.open(file.as_uri())
    window.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert window.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert window.run("return document.images[0].clientWidth") >= 800
