"""Ten generated images to import; contact sheets are not drawn."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deconvnet.datasets.synthetic import write_dataset
from deconvnet.datasets.validation import check


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten generated images, and a folder with their masks."""
    folder = tmp_path_factory.mktemp("import") / "data"
    write_dataset(str(folder), 0, 8, 2, 60, 80)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_sheets() -> Iterator[None]:
    """Contact sheets are not drawn, as that takes longer than all the rest. One test draws its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "draw_contact_sheet", lambda *_: b"sheet")
        yield
