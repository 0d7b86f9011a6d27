"""Write docs/settings.md, the reference of every command's settings, from their types.

  python docs/generate_settings.py             write it (make docs)
  python docs/generate_settings.py --check     only check that it is up to date

Exit codes: 0 written, or up to date; 1 --check: the page differs from the types.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.fields import FieldInfo

from infra.settings import Section
from workflows.cli import CommandSettings
from workflows.settings import EdgeSettings, PredictSettings, ServeSettings, Settings
from workflows.settings.export import ExportSettings
from workflows.settings.import_data import ImportSettings

FILE = Path(__file__).parent / "settings.md"


@dataclass(frozen=True)
class Chapter:
    """Commands that take the same settings.

    Attributes:
        scripts: names of the commands' scripts, without .py.
        kind: type of their settings.
        config: name of the YAML file that is read where no --config is given, without .yaml.
    """

    scripts: tuple[str, ...]
    kind: type[CommandSettings]
    config: str


CHAPTERS = (
    Chapter(("train_pipeline", "retrain", "evaluate"), Settings, "quickstart"),
    Chapter(("import_data",), ImportSettings, "import_data"),
    Chapter(("predict",), PredictSettings, "predict"),
    Chapter(("export",), ExportSettings, "export"),
    Chapter(("serve",), ServeSettings, "serve"),
    Chapter(("train_edges",), EdgeSettings, "train_edges"),
)

_HEAD = """# Settings

*Generated from the types by `make docs`: change `*/settings.py`, not this page.*

A setting is taken from the command line (`--train.stage1.lr 0.1`), else from the YAML file that `--config` names, else it has the
default below. In YAML a dot is a level:

```yaml
train:
  stage1: {lr: 0.1, schedule: poly}
```

An empty value (`--data.limit ""`) unsets a setting whose default is –. Lists are separated by commas:
`--data.classes background,cat,dog`; names that contain commas are written as JSON: `'["background", "lamp, lit"]'`.
A file may use environment variables, `${NAME}` or `${NAME:-default}`. The type *path* is a local path or one in a bucket
(`s3://bucket/folder`, `gs://…`, `abfs://…`); relative paths are relative to the working directory.
Unknown settings and values that are not allowed are refused before anything starts.

The commands also have options of their own (`--dry-run`, `--split`, …): `--help` lists both. `figures.py` and `download.py` have
options only.
"""

_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "array": "names"}
_FORMATS = {"password": "secret"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class _Named:
    """A section with its dotted name and its default values."""

    name: str
    kind: type[Section]
    default: Any


def page() -> str:
    """The whole page as Markdown."""
    seen: dict[Any, str] = {}
    return "\n".join([_HEAD, *(line for chapter in CHAPTERS for line in _chapter(chapter, seen))]).rstrip() + "\n"


def _chapter(chapter: Chapter, seen: dict[Any, str]) -> Iterator[str]:
    """The lines of a chapter. `seen`: sections that are on the page already, and where."""
    yield f"## {', '.join(f'{name}.py' for name in chapter.scripts)}"
    yield f"\nDefault file: `workflows/configs/{chapter.config}.yaml`.\n"
    fields = chapter.kind.model_fields
    plain = [(field.alias or name, field) for name, field in fields.items() if not _section(field)]
    yield _table([_row(name, field, _default(field)) for name, field in plain])
    for name, field in fields.items():
        if section := _section(field):
            yield from _sections(name, [_Named(name, section, field.get_default())], chapter, seen)


def _sections(title: str, sections: Sequence[_Named], chapter: Chapter, seen: dict[Any, str]) -> Iterator[str]:
    """A heading and a table for sections with the same fields, then those below them; a repeated section becomes a reference."""
    kind = sections[-1].kind
    key = (kind, title, tuple(each.default.model_dump_json() for each in sections))
    first = chapter is CHAPTERS[0]
    heading = f"### {title}" if first else f"### {title} ({chapter.scripts[0]}.py)"
    if key in seen:
        yield f"{heading}\n\nAs for {seen[key]}.\n"
        return
    seen[key] = f"[{chapter.scripts[0]}.py](#{title.replace('.', '')})" if first else f"{chapter.scripts[0]}.py"
    yield f"{heading}\n\n{(kind.__doc__ or '').strip().splitlines()[0]}\n"
    plain = [(name, field) for name, field in kind.model_fields.items() if not _section(field)]
    rows = []
    for name, field in plain:
        values = {each.name: value_text(getattr(each.default, name)) for each in sections}
        common = values[sections[-1].name]
        others = [f"{value} {path.rsplit('.', 1)[-1]}" for path, value in values.items() if value != common]
        prefix = sections[0].name if len(sections) == 1 else f"{sections[0].name.rsplit('.', 1)[0]}.*"
        rows.append(_row(f"{prefix}.{field.alias or name}", field, ", ".join([*others, common])))
    if rows:
        yield _table(rows)
    below: dict[tuple[str, ...], list[_Named]] = {}
    for name, field in kind.model_fields.items():
        if section := _section(field):
            named = _Named(f"{sections[0].name}.{name}", section, getattr(sections[0].default, name))
            below.setdefault(tuple(section.model_fields), []).append(named)
    for same in below.values():
        yield from _sections(", ".join(each.name for each in same), same, chapter, seen)


def _section(field: FieldInfo) -> type[Section] | None:
    """The type of a section; None where the field is a setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _default(field: FieldInfo) -> str:
    """A setting's default, or that there is none."""
    return "required" if field.is_required() else value_text(field.get_default())


def _row(name: str, field: FieldInfo, default: str) -> tuple[str, ...]:
    """A setting's cells: name, type, default, allowed values, meaning."""
    return f"`{name}`", type_text(field), default, allowed_text(field), (field.description or "").replace("<", "&lt;")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table of settings."""
    lines = ["| setting | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def type_text(field: FieldInfo) -> str:
    """A setting's type in a word or two."""
    schema = _schema(field)
    if schema.get("items", {}).get("type") == "number":
        return "numbers"
    form = schema.get("format", "")
    return "one of" if _choices(field) else _FORMATS.get(form, form) or _TYPES[schema["type"]]


def allowed_text(field: FieldInfo) -> str:
    """The values that a setting's type allows: choices or bounds; "" where there is no limit."""
    if choices := _choices(field):
        return ", ".join(f"`{value}`" for value in choices)
    schema = _schema(field)
    schema = schema.get("items", schema)  # the bounds of each number in a list
    return ", ".join(f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS.items() if key in schema)


def value_text(value: Any) -> str:
    """A value as it is written in YAML; – where nothing is set."""
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        more = f", … ({len(value)})" if len(value) > 3 else ""
        return f"`{','.join(each if isinstance(each, str) else _number(each) for each in value[:3])}`{more}"
    return f"`{_number(value)}`"


def _number(value: Any) -> str:
    """A number without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _choices(field: FieldInfo) -> list[Any]:
    """The values of a Literal; [] for other types."""
    schema = _schema(field)
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def _schema(field: FieldInfo) -> dict[str, Any]:
    """JSON Schema of a setting, for values that are not null."""
    kind: Any = Annotated[field.annotation, Field(), *field.metadata]
    whole = TypeAdapter(kind).json_schema()
    found = [each for each in whole.get("anyOf", [whole]) if each.get("type") != "null"]
    return {**{key: value for key, value in whole.items() if key in _BOUNDS}, **found[0]}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    text = page()
    if parser.parse_args(argv).check:
        fresh = FILE.exists() and FILE.read_text("utf-8") == text
        print(f"{FILE} is {'up to date' if fresh else 'out of date: run make docs'}")
        return 0 if fresh else 1
    FILE.write_text(text, "utf-8")
    print(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
