"""Functions on the URIs of files and folders: local paths, file://, URIs in buckets, and http(s)://, which can only be read.

A bucket is one of S3 (s3://bucket/folder), of Google Cloud Storage (gs://bucket/folder), or a container of Azure Blob Storage
(abfs://container/folder). Docstrings call all of these "in a bucket".
"""

from pathlib import Path

from infra.errors import UserError

BUCKETS = ("s3://", "gs://", "abfs://")
"""How the URIs of files and folders in buckets begin."""


def in_bucket(uri: str) -> bool:
    """Return whether a URI begins with s3://, gs:// or abfs://."""
    return uri.startswith(BUCKETS)


def is_http(uri: str) -> bool:
    """Return whether a URI begins with http:// or https://."""
    return uri.startswith(("http://", "https://"))


def local_path(uri: str) -> Path:
    """Convert a local path or a file:// URI to a `Path`, with ~ replaced by the home folder.

    Raises:
        UserError: if the URI is not local, such as one in a bucket, or it begins with ~NAME and there is no user of this name.
    """
    if "://" in uri and not uri.startswith("file://"):
        raise UserError(f"{uri} can't be used here: a local path or a URI that begins with s3://, gs:// or abfs:// is needed")
    path = Path(uri.removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError:
        user = path.parts[0]
        raise UserError(f"{user} is not the home folder of a user: write ./{user} for a folder of this name") from None


def absolute(uri: str) -> str:
    """Make a URI independent of the current folder, because workers run in other folders.

    A local path or file:// URI becomes an absolute path. From URIs in buckets and http(s):// URIs, only slashes at the end are
    removed.

    Raises:
        UserError: if the URI begins with another scheme, such as ftp://.
    """
    return uri.rstrip("/") if in_bucket(uri) or is_http(uri) else str(local_path(uri).resolve())


def join(uri: str, *parts: str) -> str:
    """Append parts of a path to a URI: `join("s3://bucket/run", "images", "a.png")` is "s3://bucket/run/images/a.png"."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
