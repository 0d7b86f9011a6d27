"""What several tests of storage use."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from infra import storage
from infra.errors import UserError
from infra.storage import tables
from infra.storage.objects import store
from infra.storage.tables import delta_log
from tests.servers import SECRET_KEY

SCHEMA = pa.schema([pa.field("image_id", pa.string(), nullable=False)])


def make_table(uri: str) -> list[str]:
    """Write a table of 200 rows in four parts, and return the ids of its rows as read back."""
    rows = [{"image_id": f"{i:03d}"} for i in range(200)]
    parts = [tables.write_part(uri, "f" * 64, i, rows[i * 50 : (i + 1) * 50], SCHEMA, rows_per_group=25) for i in range(4)]
    tables.commit(uri, "f" * 64, parts)
    return [row["image_id"] for row in tables.iter_rows(uri)]


def names(table: str) -> str:
    """The image_ids of all rows of a table."""
    return "".join(row["image_id"] for row in tables.iter_rows(table))


def opened(table: str) -> DeltaTable:
    """The table, opened by the library of Delta Lake."""
    uri, found = delta_log.location_for_deltalake(table)
    return DeltaTable(uri, storage_options=found)


def message_of(act: Callable[[], object]) -> str:
    """The message of the UserError that a function raises."""
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def message_of_check(uri: str) -> str:
    """The UserError of check_writable: on one line, without keys, and not after the retries of other requests."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(store, "RETRY_SECONDS", 3600.0)  # longer than a test may take
        storage.check_writable(uri)
    message = str(caught.value)
    assert SECRET_KEY not in message and "\n" not in message
    return message
