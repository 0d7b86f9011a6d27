"""A strict check of manifests against KubeRay's custom resource definitions, as an API server does it with field validation."""

import gzip
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


@lru_cache
def schema(folder: Path, kind: str) -> dict[str, Any]:
    """The schema of version v1 of a kind, "RayCluster", from the folder with the definitions."""
    with gzip.open(folder / f"ray.io_{kind.lower()}s.yaml.gz") as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The part of a schema at a path such as "spec.workerGroupSpecs[].template"."""
    for name in path.split("."):
        schema = schema["properties"][name.removesuffix("[]")]
        schema = schema["items"] if name.endswith("[]") else schema
    return schema


def errors(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Yield what is wrong with a value: unknown fields, missing ones, and values of the wrong type or not allowed."""
    kinds = (int, str) if schema.get("x-kubernetes-int-or-string") else _TYPES.get(schema.get("type", ""), object)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds not in (bool, object)):
        yield f"{path}: {value!r} is not of type {schema.get('type', 'integer or string')}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, int) and value < schema.get("minimum", value):
        yield f"{path}: {value} is below {schema['minimum']}"
    if isinstance(value, dict):
        yield from _errors_in_fields(schema, value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from errors(schema.get("items", {}), item, f"{path}[{index}]")


def _errors_in_fields(schema: dict[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
    """Yield what is wrong with the fields of a mapping."""
    fields = schema.get("properties", {})
    others = schema.get("additionalProperties", {} if not fields or schema.get("x-kubernetes-preserve-unknown-fields") else None)
    yield from (f"{path}.{name}: is missing" for name in schema.get("required", []) if name not in value)
    for name, child in value.items():
        known = fields.get(name, others)
        if known is None:
            yield f"{path}.{name}: there is no such field"
        else:
            yield from errors(known, child, f"{path}.{name}")
