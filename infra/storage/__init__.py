"""Files, locks and Parquet tables, on disk or S3.

`from infra import storage` gives the functions on files: `storage.read_json(uri)`.
"""

from infra.storage.files import (
    absolute,
    check_writable,
    copy_file,
    copy_tree,
    disk_mistake,
    exists,
    filesystem,
    is_full,
    is_s3,
    join,
    list_files,
    local_copy,
    local_path,
    put_if_absent,
    read_bytes,
    read_json,
    remove,
    remove_if_same,
    replace_if_same,
    stamp,
    write_bytes,
    write_json,
)
from infra.storage.s3 import PATIENCE_SECONDS

__all__ = [
    "PATIENCE_SECONDS",
    "absolute",
    "check_writable",
    "copy_file",
    "copy_tree",
    "disk_mistake",
    "exists",
    "filesystem",
    "is_full",
    "is_s3",
    "join",
    "list_files",
    "local_copy",
    "local_path",
    "put_if_absent",
    "read_bytes",
    "read_json",
    "remove",
    "remove_if_same",
    "replace_if_same",
    "stamp",
    "write_bytes",
    "write_json",
]
