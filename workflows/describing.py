"""What a setting takes, in words, from its type: for `--help` and for docs/settings.md."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter
from pydantic.fields import FieldInfo

_WORDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "array": "names"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def placeholder(field: FieldInfo) -> str:
    """What `--help` shows for the value: N, true|false, max|sum, A,B,…, TEXT."""
    kinds = [_bare(kind) for kind in _alternatives(field.annotation)]
    if choices := [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]:
        return "|".join(choices)
    if any(get_origin(kind) is tuple for kind in kinds):
        return "A,B,…"
    return {bool: "true|false", int: "N", float: "X"}.get(kinds[0], "TEXT")


def meaning(name: str, field: FieldInfo) -> str:
    """What the setting `name` (dotted) is for."""
    return field.description or name.rsplit(".", 1)[-1].replace("_", " ")


def type_of(field: FieldInfo) -> str:
    """The type in a word or two."""
    return "one of" if _allowed_values(field) else _WORDS[_schema(field)["type"]]


def allowed(field: FieldInfo) -> str:
    """The values that are allowed, as far as the type says: `max`, `sum`; > 0; "" where all are."""
    if values := _allowed_values(field):
        return ", ".join(f"`{value}`" for value in values)
    schema = _schema(field)
    return ", ".join(f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS.items() if key in schema)


def shown(value: Any) -> str:
    """A default as one would write it; – where nothing is set."""
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        more = f", … ({len(value)})" if len(value) > 3 else ""
        return f"`{','.join(value[:3])}`{more}"
    return f"`{_number(value)}`"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, None left out."""
    if get_origin(annotation) in (Union, UnionType):
        yield from (kind for kind in get_args(annotation) if kind is not NoneType)
    else:
        yield annotation


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _allowed_values(field: FieldInfo) -> list[Any]:
    schema = _schema(field)
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def _schema(field: FieldInfo) -> dict[str, Any]:
    """JSON Schema of what is not null."""
    kind: Any = Annotated[field.annotation, Field(), *field.metadata]
    whole = TypeAdapter(kind).json_schema()
    found = [each for each in whole.get("anyOf", [whole]) if each.get("type") != "null"]
    return {**{key: value for key, value in whole.items() if key in _BOUNDS}, **found[0]}
