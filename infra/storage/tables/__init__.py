"""Tables that pipeline stages pass to each other: Delta Lake tables, either complete or absent, with earlier versions.

The Parquet files of a table are its parts, which are never changed. The name of a part has two digests. The first names a subfolder, and is
a digest of the code version and settings, which all parts of a table have in common. The second is a digest of the part's own inputs. So a
part that an earlier version or a killed run has made is recognised by its name, and not made again. (Parts of tables that are made as
a whole are numbered instead.)

Each part has a summary of its content in its footer. Parts belong to the table when a new version in Delta Lake's log (`delta_log.py`)
names them. A version is written last and in one step, so a reader never sees half a table. Its entry in the log names one JSON file, the
commit record, with the summaries of all its parts. `prune` deletes the files that none of the versions to keep names.

Every table has a column `image_id`. In each part the rows are sorted by it; the parts are in no particular order. An argument called
`table` is the URI of a table's folder. Functions that read a table also accept the URI of one version of it (`at_version`).
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
