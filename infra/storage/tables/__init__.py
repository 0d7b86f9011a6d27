"""Tables that pipeline stages pass to each other: Delta Lake tables, either complete or absent, with earlier versions.

The Parquet files of a table are its parts, which are never changed. The name of a part has two digests: one of what all parts of a
table are made by (code version and settings), which names a subfolder, and one of what the part itself is made from. So a part that
a table needs and that was made before, for an earlier version or by a run that was killed, is recognised by its name. (Parts of tables that are made
as a whole are numbered instead.) Each part has a summary of itself in its footer. The parts become the table when a new version of it
in Delta Lake's log (`delta_log.py`) names them. A version is written last and in one step, so a reader never sees half a table. The
summaries of a version's parts are in one JSON file, the commit record, which its entry names. `prune` deletes what no version to be kept names.

Every table has a column `image_id`. In each part the rows are sorted by it; the parts are in no particular order. Arguments called
`table` are the URI of a table's folder, and where a table is read also of one version of it (`at_version`).
"""

from infra.storage.row_groups import RowGroup
from infra.storage.tables.delta_log import LOG
from infra.storage.tables.parts import (
    REJECTS,
    Key,
    Note,
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
    at_version,
    commit,
    fingerprint_of,
    folder_of,
    iter_rows,
    kept_versions,
    prune,
    read_commit,
    read_footer,
    read_row_group,
    require_commit,
)
