"""`report/index.html`: a run on one page that needs nothing beside it: pictures inside, no script, nothing fetched."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from deconvnet.reporting.figure import TITLES
from deconvnet.reporting.run_summary import STAGES, Facts, Rejects, duration, percent, result_rows

PAGE = "index.html"

_PICTURES = {
    "comparison": (
        "Side by side",
        "The best, the median and the worst photographs by EDeconvNet+CRF, with their truth and labels.",
    ),
    "wins": ("Where each wins", "Photographs on which one network is furthest ahead of the other, and the ensemble of both."),
    "instances": ("Instance by instance", "The labels after more and more proposals, from the largest box to the smallest."),
    "unpooling": (
        "Unpooling and deconvolution",
        "DeconvNet's decoder at work on one crop: each layer's map that is most active on the object, coarse to fine.",
    ),
    "examples_stage1": ("What stage 1 learns from", "Crops round annotated objects, each beside its label."),
    "examples_stage2": ("What stage 2 learns from", "Crops at proposals, each beside its label."),
}
_CHARTS = {
    "iou_by_class": ("IoU by class", "Intersection over union of every class, for the five results."),
    "iou_by_proposals": ("Number of proposals", "DeconvNet's mean IoU as it labels more of each photograph's boxes."),
    "iou_by_size": ("Size of objects", "IoU of objects by the share of the photograph that they cover."),
    "confusion": ("Confusion", "Which class is taken for which, by EDeconvNet+CRF."),
    "proposals": ("What the proposals find", "Share of the objects that the first boxes find, and how well."),
    "training_curves": ("Training", "Loss, and what is right on training crops and on dev, step by step."),
}
_MOST_REASONS = 12
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 1200px; background: #fff; color: #1c2127;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid #d8dde3; }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p { margin: .4rem 0; max-width: 75ch; }
.quiet { color: #55606b; font-size: .9rem; overflow-wrap: anywhere; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: #0b57a4; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e6e9ed; }
thead th { font-size: .85rem; color: #55606b; font-weight: 600; vertical-align: bottom; }
th.number, td.number { text-align: right; padding-left: .8rem; white-space: nowrap; }
tbody th { font-weight: 500; }
tr.sum th, tr.sum td { font-weight: 700; }
figure { margin: .5rem 0 0; }
figure img { display: block; width: 100%; height: auto; border: 1px solid #e6e9ed; }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; list-style: none; padding: 0; margin: .5rem 0; }
.chips li { background: #eef1f4; border-radius: 1rem; padding: .1rem .7rem; font-size: .9rem; overflow-wrap: anywhere; }
.bar { width: 40%; min-width: 6rem; }
.bar span { display: block; height: .8rem; margin-top: .35rem; background: #2171b5; border-radius: 2px; min-width: 2px; }
.timings { width: 100%; }
code, pre { font: .85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; color: #0b57a4; padding: .3rem 0; }
@media (max-width: 700px) {
  body { padding-top: 1rem; }
  figure img { width: 820px; max-width: none; }
  .what { display: none; }
}
"""


def page(facts: Facts) -> str:
    """The page, as HTML. Every text of it is escaped, and its own policy forbids scripts and addresses."""
    sections = {
        "results": ("Results", _results(facts)),
        "pictures": ("Pictures", _figures(facts.pictures, _PICTURES)),
        "charts": ("Charts", _figures(facts.pictures, _CHARTS)),
        "data": ("Data", _data(facts)),
        "timings": ("Time", _timings(facts.seconds)),
        "settings": ("Settings", _settings(facts)),
    }
    there = {name: (title, content) for name, (title, content) in sections.items() if content}
    body = "\n".join(f'<section id="{name}"><h2>{title}</h2>\n{content}\n</section>' for name, (title, content) in there.items())
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in there.items())
    about = f"{facts.results['dataset']}, {facts.results['images']:,} photographs · {facts.when:%d %B %Y %H:%M} UTC · code {facts.code}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(facts.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(facts.title)}</h1>
<p class="quiet">{escape(about)}</p>
<nav>{links}</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _results(facts: Facts) -> str:
    rows = result_rows(facts.results)
    table = _table(["", "mean IoU", "pixels right", "the paper"], rows)
    names = [name for name in TITLES if name in facts.results["rows"]]
    by_class = [
        (name, *(percent(facts.results["rows"][row]["iou"].get(name)) for row in names)) for name in facts.results["classes"]
    ]
    return f"""{table}
<p class="quiet">Per cent. The paper's column is its mean IoU on VOC 2012's test set, by networks of full size: another set, given for orientation.</p>
<details><summary>IoU of each class, in numbers</summary>
{_table(["class", *(TITLES[name] for name in names)], by_class)}
<p class="quiet">A class that is in neither the truth nor the labels has no IoU (–) and is left out of the mean.</p>
</details>"""


def _figures(pictures: Mapping[str, bytes], wanted: Mapping[str, tuple[str, str]]) -> str:
    return "\n".join(
        f'<h3 id="{name}">{escape(title)}</h3>\n<p class="quiet">{escape(text)}</p>\n<figure class="wide"><img alt="{escape(f"{title}. {text}")}" '
        f'src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"></figure>'
        for name, (title, text) in wanted.items()
        if name in pictures
    )


def _data(facts: Facts) -> str:
    counts = [*((f"photographs: {name}", f"{count:,}") for name, count in facts.splits.items())]
    counts += [(f"crops: {name}", f"{count:,}") for name, count in facts.crops.items()]
    parts = [_table(["", "number"], counts)] if counts else []
    classes = "".join(f"<li>{escape(name)}</li>" for name in facts.results["classes"])
    parts.append(f'<p>{len(facts.results["classes"])} classes, by id from 0:</p>\n<ul class="chips">{classes}</ul>')
    if found := facts.proposals:
        parts.append(f"<p>{escape(proposals_line(found))}</p>")
    if facts.digest:
        parts.append(f'<p class="quiet">Digest of the photographs and masks: <code>{escape(facts.digest)}</code></p>')
    return "\n".join([*parts, '<h3 id="rejects">Set aside</h3>', _rejects(facts.rejects)])


def proposals_line(found: Mapping[str, Any]) -> str:
    """What a `proposals.json` says of the first boxes, in a sentence."""
    counts = sorted(int(name.split("_")[1]) for name in found if name.startswith("recall_") and name.endswith("_iou50"))
    if not counts:
        return ""
    count = 50 if 50 in counts else counts[0]
    shares = (f"{100 * found[f'recall_{count}_iou{iou}']:.0f} %" for iou in (50, 70))
    half, most = shares
    return f"The first {count} boxes find {half} of {found['objects']:,} objects at IoU 0.5, {most} at 0.7."


def _rejects(rejects: Rejects) -> str:
    if not rejects.total:
        return "<p>Every photograph could be used.</p>"
    shown = list(rejects.counts.items())[:_MOST_REASONS]
    rows = [(reason, f"{count:,}", ", ".join(rejects.first[reason])) for reason, count in shown]
    more = (
        f'<p class="quiet">… and {len(rejects.counts) - len(shown):,} other reasons</p>'
        if len(rejects.counts) > len(shown)
        else ""
    )
    noun = "input was" if rejects.total == 1 else "inputs were"
    return f"""<p>{rejects.total:,} {noun} set aside; the table <code>rejects</code> in the workspace names all.</p>
{_table(["reason", "number", "for example"], rows, (1,))}{more}"""


def _timings(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    longest = max(seconds.values()) or 1.0
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{duration(took)}</td>'
        f'<td class="bar"><span style="width:{100 * took / longest:.1f}%"></span></td>'
        f'<td class="what quiet">{escape(STAGES.get(name, "").replace("`", ""))}</td></tr>'
        for name, took in seconds.items()
    )
    return f"""<div class="wide"><table class="timings"><tbody>
{rows}
<tr class="sum"><th scope="row">all</th><td class="number">{duration(sum(seconds.values()))}</td><td></td><td class="what"></td></tr>
</tbody></table></div>"""


def _settings(facts: Facts) -> str:
    rows = [("workspace", facts.workspace), ("code", facts.code), *_flat(facts.settings)]
    return f"<details><summary>All {len(rows)} of them</summary>\n{_table(['setting', 'value'], rows, ())}\n</details>"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] | None = None) -> str:
    """numbers: the columns set to the right; all but the first where None."""
    right = range(1, len(heads)) if numbers is None else numbers

    def cells(texts: Sequence[str], first: str, rest: str) -> str:
        kinds = [first, *[rest] * (len(texts) - 1)]
        styles = [' class="number"' if i in right else "" for i in range(len(texts))]
        made = zip(kinds, styles, texts, strict=True)
        return "".join(f"<{kind}{style}>{escape(text)}</{kind.split()[0]}>" for kind, style, text in made)

    head = cells(heads, 'th scope="col"', 'th scope="col"')
    body = "\n".join("<tr>" + cells(row, 'th scope="row"', "td") + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
