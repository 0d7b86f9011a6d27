"""Tables that pipeline stages pass to each other: Delta Lake tables, either complete or absent, with earlier versions.

A table consists of immutable Parquet files, its parts. A part's path is FINGERPRINT/part-KEY.parquet. FINGERPRINT is a digest of
the code version and settings, which all parts share. KEY is a digest of the part's own inputs, so a part that an earlier version
or a killed run has made is found by its name and reused. (Tables that are made as a whole have numbers as keys.)

The footer of each part has a summary of its content. A part belongs to the table once a version in Delta Lake's log
(`delta_log.py`) lists it. The version is written last and atomically, so a reader never sees half a table. Its log entry names
the commit record, a JSON file with the summaries of all parts. `prune` deletes the files that no version to keep refers to.

Every table has a column `image_id`. In each part the rows are sorted by it; the parts are in no particular order. An argument
called `table` is the URI of a table's folder. Functions that read a table also accept the URI of one version of it
(`at_version`).
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
