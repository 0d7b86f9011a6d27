"""Change the code of the pure packages here and there, and see whether their tests notice: `make mutants`.

A mutant is a package with one small change. It is killed if one of the package's own tests fails or takes too long. Mutants are
drawn at random, by a seed. Each is tested in a forked process that already has the large libraries. The results are kept in
build/mutants.json: killed mutants of unchanged files are not tried again, and a run that was stopped goes on.

    python tests/mutants/run.py [PACKAGE …] [--number 40] [--seed 0]
"""

import argparse
import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}

from tests.mutants.mutations import Mutation, mutations  # noqa: E402

RESULTS = ROOT / "build" / "mutants.json"
PACKAGES = {
    "crf": ("deconvnet/crf/mean_field.py deconvnet/crf/permutohedral.py", "tests/deconvnet/crf"),
    "metrics": (
        "deconvnet/evaluation/metrics.py deconvnet/evaluation/comparison.py",
        "tests/deconvnet/evaluation/test_metrics.py tests/deconvnet/evaluation/test_comparison.py",
    ),
    "boundaries": (
        "deconvnet/evaluation/boundaries.py deconvnet/evaluation/calibration.py",
        "tests/deconvnet/evaluation/test_boundaries.py tests/deconvnet/evaluation/test_calibration.py",
    ),
    "boxes": (
        "proposals/boxes.py proposals/soft_nms.py",
        "tests/proposals/test_boxes.py tests/proposals/test_windows.py tests/proposals/test_soft_nms.py "
        "tests/deconvnet/models/test_preprocessing.py",
    ),
    "edgebox": ("proposals/edgebox.py", "tests/proposals/test_edgebox.py"),
    "mining": ("proposals/mining/rules.py", "tests/proposals/mining/test_rules.py"),
    "image_notes": ("proposals/image_notes.py", "tests/proposals/test_image_notes.py"),
    "training data": (
        "deconvnet/training/data/sampler.py deconvnet/training/data/batching.py deconvnet/training/data/row_reader.py "
        "deconvnet/training/data/transforms.py deconvnet/training/data/dataloader.py",
        "tests/deconvnet/training/test_sampler.py tests/deconvnet/training/test_batching.py "
        "tests/deconvnet/training/test_row_reader.py tests/deconvnet/training/test_transforms.py "
        "tests/deconvnet/training/test_dataloader.py",
    ),
    "optimizer": ("deconvnet/training/optimizer.py", "tests/deconvnet/training/test_optimizer.py"),
    "inference": (
        "deconvnet/inference/score_maps.py deconvnet/inference/ensemble.py deconvnet/inference/instances.py",
        "tests/deconvnet/inference/test_ensemble.py tests/deconvnet/inference/test_instances.py "
        "tests/deconvnet/inference/test_early_exit.py",
    ),
    "models": (
        "deconvnet/models/layers.py deconvnet/models/deconvnet.py deconvnet/models/fcn8s.py deconvnet/models/fusion.py",
        "tests/deconvnet/models/test_layers.py tests/deconvnet/models/test_deconvnet.py tests/deconvnet/models/test_fcn8s.py "
        "tests/deconvnet/models/test_unpooling.py tests/deconvnet/models/test_fusion.py",
    ),
    "regions": (
        "deconvnet/datasets/importing/regions.py deconvnet/datasets/importing/painting.py "
        "deconvnet/datasets/importing/orientation.py",
        "tests/deconvnet/datasets/importing/test_regions.py tests/deconvnet/datasets/importing/test_rle.py "
        "tests/deconvnet/datasets/importing/test_painting.py tests/deconvnet/datasets/formats/test_exif_orientation.py "
        "tests/deconvnet/datasets/formats/test_random_projects.py tests/deconvnet/datasets/formats/test_cvat.py",
    ),
    "objects": (
        "deconvnet/datasets/objects.py deconvnet/datasets/splits.py",
        "tests/deconvnet/datasets/test_objects.py tests/deconvnet/datasets/test_splits.py",
    ),
    "statistics": (
        "deconvnet/datasets/validation/duplicates.py deconvnet/datasets/validation/image_statistics.py "
        "deconvnet/datasets/validation/contact_sheet.py",
        "tests/deconvnet/datasets/validation",
    ),
    "stages": ("infra/runtime/stages.py", "tests/infra/runtime/test_stages.py"),
    "locks": (
        "infra/storage/lock.py infra/storage/conditional.py infra/storage/guarded.py",
        "tests/infra/storage/test_lock.py tests/infra/storage/test_lock_renewal.py tests/infra/storage/test_lock_of_the_dead.py "
        "tests/infra/storage/test_conditional.py tests/infra/storage/test_guarded.py",
    ),
    "tables": (
        "infra/storage/tables/parts.py infra/storage/tables/versions.py",
        "tests/infra/storage/test_tables.py tests/infra/storage/test_versions.py tests/infra/storage/test_delta.py",
    ),
}
"""The files of each package that are changed, and the tests that should notice it."""


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed syntax tree in place of its file."""

    def __init__(self, file: Path, tree: ast.Module) -> None:
        self.file, self.tree = file, tree
        self.name = ".".join(file.relative_to(ROOT).with_suffix("").parts)

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.file, loader=self) if name == self.name else None

    def exec_module(self, module: object) -> None:
        exec(compile(self.tree, str(self.file), "exec"), vars(module))


def survives(tests: str, file: Path | None, tree: ast.Module | None, limit: float) -> bool:
    """Run tests in a forked process, with a changed module if there is one. Return whether all of them pass within `limit` s."""
    with tempfile.TemporaryDirectory(prefix="mutant") as folder:  # mutants write files to wherever they are
        child = os.fork()
        if child == 0:
            try:
                os._exit(_run_tests(tests, file, tree, limit, folder))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
    return status == 0


def _run_tests(tests: str, file: Path | None, tree: ast.Module | None, limit: float, folder: str) -> int:
    """Run tests in this process and in an empty folder, without output. Return pytest's exit status."""
    import pytest

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(max(1, round(limit)))
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(folder)
    if file and tree:
        sys.meta_path.insert(0, _Mutated(file, tree))
        if "njit" in file.read_text():  # numba would find the unchanged function in its cache
            import numba

            numba.config.CACHE_DIR = folder
    options = ["-x", "-q", "-p", "no:timeout", "-p", "no:cacheprovider", "-m", "not ray and not slow and not cluster"]
    return int(pytest.main([*options, "-c", str(ROOT / "pyproject.toml"), *(str(ROOT / each) for each in tests.split())]))


def drawn(files: str, number: int, seed: int) -> Iterator[tuple[str, Path, ast.Module, Mutation]]:
    """Draw mutants of a package. Yield the key of each, its file, the file's syntax tree and the mutation, not yet applied."""
    found = []
    for name in files.split():
        source = (ROOT / name).read_bytes()
        tree = ast.parse(source)
        digest = hashlib.sha256(source).hexdigest()[:8]
        found += [(f"{name}:{m.line}: {m.text} [{digest} {i}]", ROOT / name, tree, m) for i, m in enumerate(mutations(tree))]
    yield from random.Random(seed).sample(found, min(number, len(found)))


def main() -> None:
    """Test the mutants of the packages that the command line names, and print the share killed and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", choices=[[], *PACKAGES], metavar="PACKAGE", help=", ".join(PACKAGES))
    parser.add_argument("--number", type=int, default=40, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    options = parser.parse_args()
    os.chdir(ROOT)
    for module in ("cv2", "numba", "numpy", "pyarrow.parquet", "pydantic", "pytest", "scipy.ndimage", "hypothesis", "torch"):
        importlib.import_module(module)
    killed: dict[str, bool] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    shares: list[str] = []
    outcomes: list[bool] = []
    for package in options.packages or PACKAGES:
        files, tests = PACKAGES[package]
        started = time.monotonic()
        if not survives(tests, None, None, 600):
            sys.exit(f"{package}: the tests fail without a change: pytest {tests}")
        limit = 30 + 5 * (time.monotonic() - started)
        mutants = list(drawn(files, options.number, options.seed))
        for key, file, tree, mutation in mutants:
            if not killed.get(key):
                old = mutation.apply()
                killed[key] = not survives(tests, file, tree, limit)
                Mutation(0, "", mutation.node, mutation.name, mutation.index, old).apply()
                RESULTS.write_text(json.dumps(killed, indent=1, ensure_ascii=False))
                print(f"{'killed  ' if killed[key] else 'SURVIVED'} {key}", flush=True)
        found = [killed[key] for key, *_ in mutants]
        outcomes += found
        shares.append(_share(package, found))
        shares += [f"  {key}" for key, *_ in mutants if not killed[key]]
    print("\n".join([*shares, _share("total", outcomes)]))


def _share(name: str, killed: list[bool]) -> str:
    """Return a line that says how many mutants were killed."""
    return f"{name}: {sum(killed)} of {len(killed)} killed ({sum(killed) / len(killed):.0%})"


if __name__ == "__main__":
    main()
