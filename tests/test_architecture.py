"""The rules of the project's architecture, checked on its source.

A function over 60 lines needs a sentence in its docstring that begins with "Long because".
"""

import ast
import graphlib
import subprocess
import sys
from collections import Counter

from tests.architecture import PACKAGES, Source, sources
from tests.conftest import ROOT
from workflows.cli.main import COMMANDS

SOURCES = sources()
KNOWN = frozenset(source.name for source in SOURCES)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FILES = 350, 60, 12

_SCIENCE = {"datasets", "models", "crf"}
ALLOWED_IMPORTS = {
    "datasets": {"settings"},
    "models": set(),
    "crf": set(),
    "settings": {"datasets.palette"},
    "inference": _SCIENCE,
    "ranking": {"datasets"},
    "evaluation": {*_SCIENCE, "inference"},
    "training": {"models", "datasets", "settings", "evaluation.metrics"},
    "reporting": {*_SCIENCE, "inference", "evaluation"},
    "tracking": {*_SCIENCE, "inference", "evaluation", "reporting", "version"},
    "serving": {*_SCIENCE, "inference", "evaluation", "reporting", "tracking"},
    "version": set(),
}
"""What each part of deconvnet may import of its other parts."""
PURE = (
    "deconvnet.crf",
    "deconvnet.models",
    "deconvnet.evaluation.boundaries",
    "deconvnet.evaluation.calibration",
    "deconvnet.evaluation.metrics",
    "deconvnet.inference.instances",
    "deconvnet.inference.score_maps",
    "deconvnet.inference.ensemble",
    "deconvnet.inference.uncertainty",
    "deconvnet.inference.pixels",
    "deconvnet.inference.perceptual_hash",
    "deconvnet.ranking.selection",
    "proposals.boxes",
    "proposals.soft_nms",
    "proposals.recall",
    "proposals.mining.rules",
)
"""Modules and packages of pure functions on arrays and tensors."""
HEAVY = ("torch", "cv2", "ray", "mlflow", "matplotlib", "numba", "scipy")


def test_packages_import_only_those_below_them() -> None:
    for source in SOURCES:
        level = PACKAGES.index(source.name.split(".")[0])
        for each in source.imports(KNOWN):
            assert PACKAGES.index(each.module.split(".")[0]) <= level, f"{source.name} imports {each.module}"


def test_the_parts_of_deconvnet_import_only_those_below_them() -> None:
    for source in SOURCES:
        package, _, inside = source.name.partition(".")
        if package != "deconvnet" or not inside:
            continue
        part = inside.split(".")[0]
        for each in source.imports(KNOWN):
            other = each.module.partition(".")[2]
            if not each.module.startswith("deconvnet.") or other.split(".")[0] == part:
                continue
            allowed = ALLOWED_IMPORTS[part]
            assert other.split(".")[0] in allowed or other in allowed, f"{source.name} imports {each.module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {s.name: {each.module for each in s.imports(KNOWN) if each.at_start} - {s.name} for s in SOURCES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_pure_functions_import_no_ray_mlflow_or_pydantic() -> None:
    checked = 0
    for source in SOURCES:
        if any(source.name == name or source.name.startswith(f"{name}.") for name in PURE):
            names = [alias.name for node in ast.walk(source.tree) if isinstance(node, ast.Import) for alias in node.names]
            names += [node.module or "" for node in ast.walk(source.tree) if isinstance(node, ast.ImportFrom)]
            assert not {name.split(".")[0] for name in names} & {"ray", "mlflow", "pydantic"}, source.name
            checked += 1
    assert checked > len(PURE)


def test_only_one_module_imports_private_modules_of_ray() -> None:
    private = set()
    for source in SOURCES:
        for node in ast.walk(source.tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("ray.") and ("._" in name or ".v2" in name) for name in names):
                private.add(source.name)
    assert private == {"infra.runtime.ray_compat"}


def test_importing_settings_imports_nothing_heavy() -> None:
    modules = sorted(name for name in KNOWN if name.endswith("settings"))
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    assert not {set(HEAVY)} & set(sys.modules), name
"""
    assert len(modules) > 4 and _imported(code) == set()


def test_help_of_no_command_imports_anything_heavy() -> None:
    code = f"""
import contextlib, importlib, io
for script in {COMMANDS}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("workflows." + script).main(["--help"])
"""
    assert _imported(code) == set()


def _imported(code: str) -> set[str]:
    """The heavy packages that are imported after `code` has run in a process of its own."""
    code += f"\nimport sys\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_files_are_short() -> None:
    assert {source.name for source in SOURCES if len(source.text.splitlines()) > MAX_FILE_LINES} == set()


def test_functions_are_short_or_say_why_not() -> None:
    assert [name for source in SOURCES for name in _long_functions(source)] == []


def _long_functions(source: Source) -> list[str]:
    """Dotted names of the functions that are too long and give no reason."""
    return [
        f"{source.name}.{node.name}"
        for node in source.functions()
        if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES and "Long because" not in (ast.get_docstring(node) or "")
    ]


def test_folders_hold_few_files() -> None:
    counts = Counter(source.path.parent for source in SOURCES)
    assert [str(folder.relative_to(ROOT)) for folder, count in counts.items() if count > MAX_FILES] == []


_NUMBERS = {"int", "float", "PositiveInt", "PositiveFloat", "NonNegativeInt", "NonNegativeFloat"}


def _may_be_none(annotation: ast.expr | None) -> bool:
    """Whether an annotation is that of a number or None."""
    names = {part.strip(" \"'") for part in ast.unparse(annotation).split("|")} if annotation else set()
    return "None" in names and bool(names & _NUMBERS)


def test_numbers_that_may_be_none_are_not_replaced_where_they_are_0() -> None:
    """`number or default` takes 0 for None. `default if number is None else number` does not."""
    names, found = set(), []
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.AnnAssign) and _may_be_none(node.annotation):
                names.add(node.target.attr if isinstance(node.target, ast.Attribute) else ast.unparse(node.target))
            if isinstance(node, ast.arg) and _may_be_none(node.annotation):
                names.add(node.arg)
    assert {"max_pixels", "max_steps", "threads"} <= names
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
                left = [each.attr if isinstance(each, ast.Attribute) else ast.unparse(each) for each in node.values[:-1]]
                found += [f"{source.name}: {ast.unparse(node)}" for name in left if name in names]
    assert found == []
