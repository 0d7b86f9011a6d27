"""docs/settings.md is what the types say, and --help says the same."""

from pathlib import Path

import pytest

from workflows import reference
from workflows.describing import allowed, placeholder, shown, type_of
from workflows.options import CONFIGS, leaves, parser
from workflows.reference import DOORS, FILE
from workflows.settings import Settings

FIELDS = dict(leaves(Settings))


def test_the_page_is_as_the_types_are() -> None:
    assert FILE.read_text("utf-8") == reference.reference(), "make docs"


def test_every_setting_of_every_door_is_on_it_and_says_what_it_is_for() -> None:
    page = reference.reference()
    for door in DOORS:
        assert (CONFIGS / f"{door.config}.yaml").is_file()
        for path, field in leaves(door.kind):
            assert field.description, f"{door.scripts[0]}: {path} has no description"
            stages = "train.*." + path.split(".")[-1] if path.startswith("train.") else path
            assert f"| `{stages}` |" in page, path


@pytest.mark.parametrize(
    ("name", "type_", "allows", "default", "value"),
    [
        ("train.stage1.epochs", "whole number", "> 0", "`30`", "N"),
        ("train.stage1.max_steps", "whole number", "> 0", "–", "N"),
        ("proposals.beta", "number", "> 0, < 1", "`0.75`", "X"),
        ("segment.aggregation", "one of", "`max`, `sum`", "`max`", "max|sum"),
        ("compute.gpu", "true or false", "", "`false`", "true|false"),
        ("data.root", "text", "", "–", "TEXT"),
        ("data.max_pixels", "whole number", "> 0", "`100000000`", "N"),
        ("data.classes", "names", "", "`background,aeroplane,bicycle`, … (21)", "A,B,…"),
    ],
)
def test_a_setting_in_words(name: str, type_: str, allows: str, default: str, value: str) -> None:
    field = FIELDS[name]
    assert (type_of(field), allowed(field), shown(field.get_default()), placeholder(field)) == (type_, allows, default, value)


def test_where_stages_differ_each_default_is_told() -> None:
    (row,) = [line for line in reference.reference().splitlines() if line.startswith("| `train.*.batch`")]
    assert "| `20` fcn8s, `64` |" in row


def test_a_stale_page_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reference, "FILE", tmp_path / "docs" / "settings.md")
    assert reference.main(["--check"]) == 1 and not (tmp_path / "docs").exists()
    assert reference.main([]) == 0 and reference.main(["--check"]) == 0
    reference.FILE.write_text("old")
    assert reference.main(["--check"]) == 1 and "make docs" in capsys.readouterr().out


def test_help_is_grouped_and_names_the_values() -> None:
    page = parser("What it does.", Settings, CONFIGS / "quickstart.yaml").format_help()
    assert page.startswith("usage: ") and len(page.split("What it does.")[0].splitlines()) < 4
    assert page.index("\nmodel:\n") < page.index("--model.width X") < page.index("\ncompute:\n")
    assert "--segment.aggregation max|sum" in page and "--data.root PLACE" in page
