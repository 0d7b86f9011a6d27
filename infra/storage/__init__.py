"""Files, locks and Parquet tables on a local disk or in a bucket of S3, Google Cloud Storage or Azure.

The functions on files can be called by the name of the package: `from infra import storage`, then `storage.read_json(uri)`.
"""

from infra.storage.conditional import compare_and_swap, one_process_at_a_time
from infra.storage.disk import MAX_STEM_BYTES, disk_user_error, is_full
from infra.storage.files import (
    check_writable,
    content_digest,
    copy_file,
    copy_tree,
    exists,
    local_copy,
    read_bytes,
    read_json,
    remove,
    remove_files,
    version_token,
    write_bytes,
    write_json,
)
from infra.storage.listing import ListedFile, filesystem, list_files, list_sizes
from infra.storage.uri import absolute, in_bucket, join, local_path
