"""Tables that pipeline stages pass to each other: Delta Lake tables with sorted rows, either complete or absent.

The Parquet files of a table are its parts. They lie in a subfolder that is named after the table's fingerprint, a digest of what
it was made from. Each part has a summary of itself in its footer. The parts become the table when a new version of it in Delta
Lake's log (`delta_log.py`) names them. A version is written last and in one step, so a reader never sees half a table, and a new table
replaces an old one at once. The summaries of a version's parts are in one JSON file, the commit record, which its entry names.

Every table has a column `image_id`, by which its rows are sorted. Arguments called `table` are the URI of a table's folder.
"""

from infra.storage.row_groups import RowGroup
from infra.storage.tables.delta_log import LOG
from infra.storage.tables.parts import (
    REJECTS,
    Part,
    Reject,
    chunks,
    discard,
    finished_parts,
    part_files,
    part_name,
    write_part,
)
from infra.storage.tables.versions import (
    SCHEMA_VERSION,
    Commit,
    commit,
    fingerprint_of,
    iter_rows,
    read_commit,
    read_footer,
    read_row_group,
    require_commit,
    rows_between,
)
