"""What a soak has measured: a table by minute, a picture, and whether memory grew or a request failed. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FEWEST_READINGS = 3
"""How many readings each half of a soak must have for a statement about growth."""


@dataclass(frozen=True)
class Request:
    """A request and its answer.

    Attributes:
        at: when it was sent, in seconds after the begin.
        kind: what was sent, such as "image" or "not an image".
        seconds: time until the whole answer was there.
        status: HTTP status; 0 if there was no answer.
        wanted: the status that such a request must get.
    """

    at: float
    kind: str
    seconds: float
    status: int
    wanted: int


@dataclass(frozen=True)
class Reading:
    """What the server's processes use at a moment.

    Attributes:
        at: seconds after the begin.
        memory: resident memory in MiB by group of processes: "serve.py", "replicas", "Ray".
        files: open files of "serve.py" and "replicas".
    """

    at: float
    memory: Mapping[str, float]
    files: Mapping[str, int]


def growth(readings: Sequence[Reading], group: str, seconds: float) -> float | None:
    """Return by which share the memory of a group of processes grew from the first half of a soak to the second (medians).

    Args:
        readings: what was read, at any times.
        group: a group of processes.
        seconds: how long the soak took.

    Returns:
        The share, such as 0.1 for a tenth; None if one half has fewer than FEWEST_READINGS readings.
    """
    halves = [[r.memory[group] for r in readings if (r.at >= seconds / 2) == second] for second in (False, True)]
    if min(map(len, halves)) < FEWEST_READINGS:
        return None
    first, second = map(float, map(np.median, halves))
    return second / first - 1


def faults(
    requests: Sequence[Request], readings: Sequence[Reading], kinds: Sequence[str], seconds: float, most_growth: float
) -> list[str]:
    """Return what speaks against the server, a sentence for each fault; [] if the soak is passed.

    Args:
        requests: all requests.
        readings: what its processes used.
        kinds: the kinds of requests of which there must be some.
        seconds: how long the soak took.
        most_growth: by which share memory may grow from the first half to the second.
    """
    found = []
    for kind in kinds:
        mine = [r for r in requests if r.kind == kind]
        wrong = Counter(r.status for r in mine if r.status != r.wanted)
        if not mine:
            found.append(f"no request was sent: {kind}")
        elif wrong:
            text = ", ".join(f"{count} × {status or 'no answer'}" for status, count in sorted(wrong.items()))
            found.append(f"{sum(wrong.values())} of {len(mine)} requests did not get {mine[0].wanted}: {kind} ({text})")
    if not readings:
        return [*found, "nothing is known of the server's memory"]
    for group in readings[0].memory:
        share = growth(readings, group, seconds)
        if share is None:
            found.append(f"too little is known of the memory of {group} to say whether it grew")
        elif share > most_growth:
            found.append(
                f"the memory of {group} grew by {share:.1%} from the first half to the second; {most_growth:.1%} are allowed"
            )
    return found


def latencies(requests: Sequence[Request]) -> tuple[float, float, float]:
    """Return the median, the 95th percentile and the largest of the requests' times in milliseconds."""
    times = 1000 * np.array([r.seconds for r in requests])
    return float(np.median(times)), float(np.percentile(times, 95)), float(times.max())


def answers(requests: Sequence[Request]) -> str:
    """Return how many answers had which status, such as "200: 5, none: 1"."""
    return ", ".join(f"{status or 'none'}: {n}" for status, n in sorted(Counter(r.status for r in requests).items())) or "–"


def by_kind(requests: Sequence[Request]) -> list[str]:
    """Return the lines of a Markdown table with a row for each kind of request."""
    lines = ["| kind | number | ms (median, 95 %, most) | answers by status |", "|---|---:|---|---|"]
    for kind in dict.fromkeys(r.kind for r in requests):
        mine = [r for r in requests if r.kind == kind]
        lines.append(f"| {kind} | {len(mine)} | {' / '.join(f'{t:.0f}' for t in latencies(mine))} | {answers(mine)} |")
    return lines


def by_interval(requests: Sequence[Request], readings: Sequence[Reading], seconds: float, interval: float = 60.0) -> list[str]:
    """Return the lines of a Markdown table with a row for each interval (a minute) of the soak.

    Args:
        requests: all requests. An interval's are those that were sent in it.
        readings: what the server's processes used: of memory the median of an interval is shown, of open files the most.
        seconds: how long the soak took.
        interval: seconds of a row.
    """
    kinds = list(dict.fromkeys(r.kind for r in requests))
    groups, files = (list(readings[0].memory), list(readings[0].files)) if readings else ([], [])
    columns = [
        "from s",
        *(f"{kind}, ms" for kind in kinds),
        "answers",
        *(f"{g}, MiB" for g in groups),
        *(f"{f}, files" for f in files),
    ]
    lines = [f"| {' | '.join(columns)} |", f"|{'---:|' * len(columns)}"]
    for begin in np.arange(0, seconds, interval):
        here = [r for r in requests if begin <= r.at < begin + interval]
        used = [r for r in readings if begin <= r.at < begin + interval]
        cells = [f"{begin:.0f}"]
        for kind in kinds:
            mine = [r for r in here if r.kind == kind]
            cells.append(" / ".join(f"{t:.0f}" for t in latencies(mine)) if mine else "–")
        cells.append(answers(here))
        cells += [f"{np.median([r.memory[g] for r in used]):.0f}" if used else "–" for g in groups]
        cells += [f"{max(r.files[f] for r in used)}" if used else "–" for f in files]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(requests: Sequence[Request], readings: Sequence[Reading], changed: float | None, file: Path) -> None:
    """Draw latencies by kind and memory by group of processes over time.

    Args:
        requests: all requests.
        readings: what the server's processes used.
        changed: when the champion was changed, in seconds after the begin; None if it was not.
        file: the PNG to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 7), sharex=True, layout="constrained")
    for kind in dict.fromkeys(r.kind for r in requests):
        mine = [r for r in requests if r.kind == kind]
        top.plot([r.at / 60 for r in mine], [1000 * r.seconds for r in mine], ".", markersize=2, label=kind)
    top.set_yscale("log")
    top.set_ylabel("time of an answer (ms)")
    top.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4)
    for group in readings[0].memory if readings else ():
        bottom.plot([r.at / 60 for r in readings], [r.memory[group] for r in readings], label=group)
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("resident memory (MiB)")
    bottom.set_xlabel("minutes")
    bottom.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    if changed is not None:
        for axes in (top, bottom):
            axes.axvline(changed / 60, color="grey", linestyle="--", linewidth=1)
        bottom.annotate("the champion changes", (changed / 60, 0), xytext=(4, 4), textcoords="offset points", fontsize="small")
    figure.savefig(file, dpi=110)
    plt.close(figure)
