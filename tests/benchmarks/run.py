"""Run benchmarks on this machine and print one table. Times are medians of several runs; ratios are of runs that took turns.

make bench                       all of them: about half an hour on 2 cores
make bench ARGS='crf loop'       some of them
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import feeding, inference, serving, steps, training  # noqa: E402  (needs the path above)
from tests.benchmarks.common import Row, machine  # noqa: E402


def pipeline() -> list[Row]:
    """The duration of the quickstart's stages."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "workflows" / "train_pipeline.py"), "--workspace", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stages = {p.stem: json.loads(p.read_text())["seconds"] for p in sorted(Path(folder, "stages").glob("*.json"))}
    durations = ", ".join(f"{name} {seconds:.0f}" for name, seconds in sorted(stages.items(), key=lambda pair: -pair[1]))
    return [("the quickstart, seconds by stage", f"{durations}; {sum(stages.values()):.0f} in total")]


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    benchmark.__name__: benchmark
    for benchmark in (
        training.loop,
        steps.steps,
        steps.winograd,
        feeding.feeding,
        feeding.launches,
        feeding.inputs,
        inference.segmentation,
        inference.crf,
        inference.gpu_crf,
        inference.uncertainty,
        inference.proposals,
        inference.measures,
        serving.serving,
        pipeline,
    )
}


def main() -> int:
    """Run the benchmarks named on the command line, or all. Exit code 2 for an unknown name."""
    wanted = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(wanted) - set(BENCHMARKS):
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(f"{machine()}\n\n| what | measured |\n|---|---|")
    for name in wanted:
        for what, measured in BENCHMARKS[name]():
            print(f"| {what} | {measured} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
