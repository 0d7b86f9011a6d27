"""Reads the project's source for the tests of its architecture: modules, imports, lengths."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("infra", "proposals", "deconvnet", "workflows")
"""The top-level packages; each may import those before it."""


@dataclass(frozen=True)
class Import:
    """An import statement.

    Attributes:
        module: dotted name of the imported module of ours.
        at_start: whether it runs when the importing module is imported (not in a function, not for type checkers only).
    """

    module: str
    at_start: bool


@dataclass(frozen=True)
class Source:
    """A module of the project."""

    path: Path

    @property
    def name(self) -> str:
        """Dotted name."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def text(self) -> str:
        """The source text."""
        return self.path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.text)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Every function and method."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    def imports(self, known: frozenset[str]) -> Iterator[Import]:
        """The imports of modules in `known`, those for type checkers only left out."""
        yield from self._imports_in(self.tree.body, known, True)

    def _imports_in(self, body: list[ast.stmt], known: frozenset[str], at_start: bool) -> Iterator[Import]:
        """The imports in statements, at any depth."""
        for node in body:
            if isinstance(node, ast.Import):
                yield from (Import(_longest(alias.name, known), at_start) for alias in node.names if _longest(alias.name, known))
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if module := _longest(f"{node.module}.{alias.name}", known):
                        yield Import(module, at_start)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from self._imports_in(node.orelse, known, at_start)
            else:
                inner = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                    yield from self._imports_in(getattr(node, field, []), known, inner)


def _longest(name: str, known: frozenset[str]) -> str:
    """The module of `known` that a dotted name is in; "" if there is none."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def sources() -> list[Source]:
    """All modules of the project, tests left out."""
    return [Source(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
