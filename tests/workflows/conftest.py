"""Commands run in the tests' process print their log messages, as they do when they are run by themselves."""

import pytest

from workflows.cli import configure_logging


@pytest.fixture(autouse=True)
def _logging() -> None:
    configure_logging()
