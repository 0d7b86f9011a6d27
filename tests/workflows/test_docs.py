"""README and docs/: links have targets, commands and options exist, and the errors they explain are those of the code."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate_settings import CHAPTERS
from tests.conftest import ROOT
from workflows.cli import setting_fields

PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_files_named_in_the_architecture_exist() -> None:
    there = {
        path.name
        for package in ("infra", "proposals", "deconvnet", "workflows", "tests")
        for path in (ROOT / package).rglob("*.py")
    }
    named = set(re.findall(r"(\w+\.py)\b", (ROOT / "ARCHITECTURE.md").read_text("utf-8")))
    assert named <= there and len(named) > 50


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command in the pages, as words, from code blocks and inline code."""
    for page in PAGES:
        text = re.sub(r" \\\n\s*", " ", page.read_text("utf-8"))
        for line in re.findall(r"python (?:workflows/|-m workflows\.|-m deconvnet\.)[^\n`]*", text):
            words = shlex.split(re.split(r"\s>>|'(?=$|\s*$)", line)[0], comments=True)
            yield page.name, [word for word in words if word not in ("…", "[--dry-run]")]


def options_of(script: str) -> set[str]:
    """The options of a script: those in its source, and its settings."""
    module = importlib.import_module(script)
    options = set(re.findall(r'"(--[\w.-]+)"', Path(str(module.__file__)).read_text("utf-8")))
    settings = {
        f"--{path}" for each in CHAPTERS if script.split(".")[-1] in each.scripts for path, _ in setting_fields(each.kind)
    }
    return options | settings | {"--config", "--help"}


def test_commands_name_scripts_options_and_files_that_exist() -> None:
    found = list(commands())
    assert len(found) > 30
    for page, (_, *words) in found:
        script, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py").replace("/", "."), words[1:])
        assert (ROOT / f"{script.replace('.', '/')}.py").is_file(), f"{page}: {script}"
        known = options_of(script)
        for word in rest:
            assert not word.startswith("--") or word.partition("=")[0] in known, f"{page}: {script} has no {word}"
            assert not word.startswith("workflows/configs/") or (ROOT / word).is_file(), f"{page}: {word}"


def messages() -> str:
    """All string constants in the code, one a line."""
    texts = []
    for room in ("infra", "proposals", "deconvnet", "workflows"):
        for path in (ROOT / room).rglob("*.py"):
            texts += [
                n.value
                for n in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
    return "\n".join(texts)


def test_explained_errors_are_those_of_the_code() -> None:
    table = (ROOT / "docs" / "operations.md").read_text("utf-8").split("## Errors and what to do")[1].split("\n## ")[0]
    explained = [match for row in table.splitlines() for match in re.findall(r"^\| `([^`]+)`", row)]
    assert len(explained) > 15
    known = messages()
    for text in explained:
        pieces = [piece for piece in text.split("…") if len(piece.strip()) > 3]
        assert pieces and all(piece in known for piece in pieces), text


def test_the_readme_begins_with_two_commands_and_is_short() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    first = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make run", "make test"]
    assert len(text.splitlines()) < 120
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"docs/{page.name}" in text
