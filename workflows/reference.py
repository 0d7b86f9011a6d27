"""Write docs/settings.md, the reference of every door's settings, from their types.

  python -m workflows.reference             write it (make docs)
  python -m workflows.reference --check     only say whether it is as the types are

Exit codes: 0 done, or up to date; 1 --check: it is not what the types say.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.settings import Section
from workflows.describing import allowed, meaning, shown, type_of
from workflows.import_data import ImportSettings
from workflows.options import DoorSettings
from workflows.pipelines.edges import EdgeSettings
from workflows.predict import PredictSettings
from workflows.serve import ServeSettings
from workflows.settings import Settings

FILE = Path(__file__).parent.parent / "docs" / "settings.md"
MAKE = "make docs"


@dataclass(frozen=True)
class Door:
    """Doors that take the same settings. config: the file that is read where no --config is given."""

    scripts: tuple[str, ...]
    kind: type[DoorSettings]
    config: str


DOORS = (
    Door(("train_pipeline", "retrain", "evaluate"), Settings, "quickstart"),
    Door(("import_data",), ImportSettings, "import_data"),
    Door(("predict",), PredictSettings, "predict"),
    Door(("serve",), ServeSettings, "serve"),
    Door(("train_edges",), EdgeSettings, "train_edges"),
)

_HEAD = f"""# Settings

*Made from the types by `{MAKE}`: change `*/settings.py` and the doors, not this page.*

A setting is looked for on the command line (`--train.stage1.lr 0.1`), then in the YAML file that `--config` names, and is else what
this page gives as its default. In YAML a dot is a level:

```yaml
train:
  stage1: {{lr: 0.1, schedule: poly}}
```

An empty value (`--data.limit ""`) unsets one whose default is –. Lists take commas: `--data.classes background,cat,dog`; names that
have commas themselves are written as JSON: `'["background", "lamp, lit"]'`. A file may name variables of the environment, `${{NAME}}` or
`${{NAME:-otherwise}}`. A *place* is a path, or an `s3://bucket/folder`; relative paths count from the folder that the command is given in.
Whatever is unknown or out of range is refused before anything starts, in a sentence with what would do.

Beside the settings doors have options of their own (`--dry-run`, `--split`, …): `--help` lists both. `figures.py` and `download.py` have
options alone.
"""


def reference() -> str:
    """The whole page, Markdown."""
    seen: dict[Any, str] = {}
    return "\n".join([_HEAD, *(line for door in DOORS for line in _door(door, seen))]).rstrip() + "\n"


def _door(door: Door, seen: dict[Any, str]) -> Iterator[str]:
    yield f"## {', '.join(f'{name}.py' for name in door.scripts)}"
    yield f"\nDefault file: `workflows/configs/{door.config}.yaml`.\n"
    plain = [(name, field) for name, field in door.kind.model_fields.items() if not _section(field)]
    rows = [_row(field.alias or name, field, shown_default(field), door.kind) for name, field in plain]
    yield _table(rows)
    for name, field in door.kind.model_fields.items():
        if section := _section(field):
            yield from _part(name, [(name, section, field.get_default())], door, seen)


def _part(title: str, parts: Sequence[tuple[str, type[Section], Any]], door: Door, seen: dict[Any, str]) -> Iterator[str]:
    """A table of sections of one type, by dotted name, with their defaults; one that stands on the page already is referred to."""
    _, kind, _ = parts[-1]
    key = (kind, title, tuple(default.model_dump_json() for _, _, default in parts))
    heading = f"### {title}" if door is DOORS[0] else f"### {title} ({door.scripts[0]}.py)"
    if key in seen:
        yield f"{heading}\n\nAs for {seen[key]}.\n"
        return
    seen[key] = f"[{DOORS[0].scripts[0]}.py](#{title.replace('.', '')})" if door is DOORS[0] else f"{door.scripts[0]}.py"
    yield f"{heading}\n\n{(kind.__doc__ or '').strip().splitlines()[0]}\n"
    fields = [(name, field) for name, field in kind.model_fields.items() if not _section(field)]
    rows = []
    for name, field in fields:
        values = {path: shown(getattr(default, name)) for path, _, default in parts}
        common = values[parts[-1][0]]
        others = [f"{value} {path.rsplit('.', 1)[-1]}" for path, value in values.items() if value != common]
        prefix = parts[0][0] if len(parts) == 1 else f"{parts[0][0].rsplit('.', 1)[0]}.*"
        rows.append(_row(f"{prefix}.{field.alias or name}", field, ", ".join([*others, common]), door.kind))
    if rows:
        yield _table(rows)
    below: dict[tuple[str, ...], list[tuple[str, type[Section], Any]]] = {}
    for name, field in kind.model_fields.items():
        if section := _section(field):
            below.setdefault(tuple(section.model_fields), []).append(
                (f"{parts[0][0]}.{name}", section, getattr(parts[0][2], name))
            )
    for same in below.values():
        yield from _part(", ".join(name for name, _, _ in same), same, door, seen)


def _section(field: Any) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def shown_default(field: Any) -> str:
    """A setting's default, or that it must be given."""
    return "must be given" if field.is_required() else shown(field.get_default())


def _row(name: str, field: Any, default: str, kind: type[DoorSettings]) -> tuple[str, ...]:
    what = "place" if name in kind.PLACES else type_of(field)
    return f"`{name}`", what, default, allowed(field), meaning(name, field).replace("<", "&lt;")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| setting | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="write nothing")
    check = options.parse_args(argv).check
    text = reference()
    if check:
        fresh = FILE.exists() and FILE.read_text("utf-8") == text
        print(f"{FILE} is {'up to date' if fresh else f'not what the types say: {MAKE}'}")
        return 0 if fresh else 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text, "utf-8")
    print(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
