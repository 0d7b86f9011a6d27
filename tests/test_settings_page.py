"""docs/settings.md is what the types say, and --help shows the same settings."""

from pathlib import Path

import pytest

from docs import generate_settings
from docs.generate_settings import CHAPTERS, FILE, allowed_text, page, type_text, value_text
from workflows.cli import setting_fields
from workflows.settings import CONFIGS, Settings, parser

FIELDS = dict(setting_fields(Settings))


@pytest.fixture(scope="module")
def text() -> str:
    """The page, as the types say it is."""
    return page()


def test_the_page_is_up_to_date(text: str) -> None:
    assert FILE.read_text("utf-8") == text, "run make docs"


def test_every_setting_of_every_command_is_on_the_page_with_a_description(text: str) -> None:
    for chapter in CHAPTERS:
        assert (CONFIGS / f"{chapter.config}.yaml").is_file()
        for name, field in setting_fields(chapter.kind):
            assert field.description, f"{chapter.scripts[0]}: {name} has no description"
            stages = "train.*." + name.split(".")[-1] if name.startswith("train.") else name
            assert f"| `{stages}` |" in text, name


@pytest.mark.parametrize(
    ("name", "type_", "allowed", "default"),
    [
        ("train.stage1.epochs", "whole number", "> 0", "`30`"),
        ("train.stage1.max_steps", "whole number", "> 0", "–"),
        ("proposals.beta", "number", "> 0, < 1", "`0.75`"),
        ("segment.aggregation", "one of", "`max`, `sum`, `mean`", "`max`"),
        ("compute.gpu", "true or false", "", "`false`"),
        ("data.root", "path", "", "–"),
        ("data.train_split", "text", "", "`train`"),
        ("data.max_pixels", "whole number", "> 0", "`100000000`"),
        ("data.classes", "names", "", "`background,aeroplane,bicycle`, … (21)"),
    ],
)
def test_a_setting_is_described_by_its_type(name: str, type_: str, allowed: str, default: str) -> None:
    field = FIELDS[name]
    assert (type_text(field), allowed_text(field), value_text(field.get_default())) == (type_, allowed, default)


def test_where_stages_have_different_defaults_all_are_shown(text: str) -> None:
    (row,) = [line for line in text.splitlines() if line.startswith("| `train.*.batch`")]
    assert "| `20` fcn8s, `64` |" in row


def test_check_finds_an_outdated_page(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_settings, "FILE", tmp_path / "settings.md")
    monkeypatch.setattr(generate_settings, "page", lambda: text)
    assert generate_settings.main(["--check"]) == 1 and not generate_settings.FILE.exists()
    assert generate_settings.main([]) == 0 and generate_settings.main(["--check"]) == 0
    assert generate_settings.FILE.read_text("utf-8") == text
    generate_settings.FILE.write_text("old")
    assert generate_settings.main(["--check"]) == 1 and "make docs" in capsys.readouterr().out


def test_help_groups_the_settings_by_section() -> None:
    text = parser("What it does.").format_help()
    assert text.startswith("usage: ") and len(text.split("What it does.")[0].splitlines()) < 4
    assert text.index("\nmodel:\n") < text.index("--model.width float") < text.index("\ncompute:\n")
    assert "--segment.aggregation {max,sum,mean}" in text and "--data.root str" in text and "(default: 0.75)" in text
