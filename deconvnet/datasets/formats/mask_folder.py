"""A folder of masks beside a folder of photographs, matched by name: ids in paletted or grey images, or colours."""

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

from deconvnet.datasets.importing.class_table import Labels, infer, read_table, values_of
from deconvnet.datasets.importing.source import (
    BACKGROUND,
    Labelled,
    Part,
    Photographs,
    Rules,
    Source,
    annotated_size,
    file_of,
    read_input,
    shown_size,
    turned,
)
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.progress import progress


def read_masks(
    parts: Sequence[Part], wanted: Sequence[str], rules: Rules, table: str | None, suffix: str, voc_names: Sequence[str]
) -> tuple[Source, Labels]:
    """The photographs of `parts` that have a mask, and what the masks' values mean.

    wanted: class names by id, where `table` (a file, see label_table) is None; both empty: inferred from all masks. suffix: what
    masks' names have after the photograph's (`_mask`). Raises UserError where no mask fits a photograph.
    """
    pairs, rejects, notes = [], [], []
    for part in parts:
        photographs = Photographs(part.images)
        masks = _stems(Photographs(part.annotations).names, suffix)
        found = _stems(photographs.names, "")
        if suffix and part.images == part.annotations:
            found = {stem: name for stem, name in found.items() if not stem.endswith(suffix)}
        matched = [stem for stem in found if stem in masks]
        if not matched:
            examples = f"{next(iter(found.values()))} and {next(iter(masks.values()), 'none')}"
            raise UserError(
                f"no mask in {part.annotations} has the name of a photograph in {part.images} ({examples}, for example): "
                "a mask must have its photograph's name, and after it what --mask_suffix says"
            )
        pairs += [(part, photographs, found[stem], masks[stem]) for stem in matched]
        lone = [masks[stem] for stem in masks if stem not in found]
        rejects += [(name, storage.join(part.annotations, name), f"no photograph of this name in {part.images}") for name in lone]
        if bare := len(found) - len(matched):
            notes.append(f"{bare:,} photographs in {part.images} have no mask and are left out")
    labels = _labels([storage.join(part.annotations, mask) for part, _, _, mask in pairs], wanted, rules, table, voc_names)
    source = Source(labels.classes, notes=notes + ([labels.inferred] if labels.inferred else []))
    for part, photographs, name, mask in pairs:
        uri = storage.join(part.annotations, mask)
        source.add(name, uri, part.split, partial(_label, photographs, name, uri, labels, rules))
    for reject in rejects:
        source.reject(*reject)
    return source, labels


def _stems(names: Sequence[str], suffix: str) -> dict[str, str]:
    """Names by what they are matched by: the path without suffixes. Of several the first counts."""
    stems: dict[str, str] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem.endswith(suffix):
            stems.setdefault(stem.removesuffix(suffix), name)
    return stems


def _labels(uris: Sequence[str], wanted: Sequence[str], rules: Rules, table: str | None, voc_names: Sequence[str]) -> Labels:
    if table:
        try:
            return read_table(read_input(table).decode("utf-8-sig"), table)
        except (BadInput, UnicodeDecodeError):
            raise UserError(f"--table {table} can't be read: it must be a text file, a class and its value a line") from None
    found = []
    for uri in progress(uris, len(uris), "reading mask values", "masks"):
        try:
            found.append(values_of(read_input(uri), rules.max_pixels))
        except BadInput:
            continue  # it is set aside with its reason when its turn comes
    names = (BACKGROUND, *(n for n in wanted if n.lower() != BACKGROUND)) if wanted else ()
    return infer(found, names, voc_names)


def _label(photographs: Photographs, name: str, uri: str, labels: Labels, rules: Rules) -> Labelled:
    image = photographs.read(name)
    shown_size(image, rules.max_pixels)
    classes = labels.classes_of(read_input(uri), rules.strange_void, rules.max_pixels)
    if annotated_size(image, (classes.shape[1], classes.shape[0]), rules.max_pixels):
        classes = turned(image, classes)
    return Labelled(*file_of(image, name), classes)
