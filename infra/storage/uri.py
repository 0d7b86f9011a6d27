"""Functions on the URIs of files and folders: local paths, file://, s3://, and http(s)://, which can only be read."""

from pathlib import Path

from infra.errors import UserError


def is_s3(uri: str) -> bool:
    """Return whether a URI begins with s3://."""
    return uri.startswith("s3://")


def is_http(uri: str) -> bool:
    """Return whether a URI begins with http:// or https://."""
    return uri.startswith(("http://", "https://"))


def local_path(uri: str) -> Path:
    """Convert a local path or a file:// URI to a `Path`, with ~ replaced by the home folder.

    Raises:
        UserError: if the URI is not local, such as s3://.
    """
    if "://" in uri and not uri.startswith("file://"):
        raise UserError(f"{uri} can't be used here: a local path or an s3:// URI is needed")
    return Path(uri.removeprefix("file://")).expanduser()


def absolute(uri: str) -> str:
    """Make a URI independent of the current folder, because workers run in other folders.

    A local path or file:// URI becomes an absolute path. From s3:// and http(s):// URIs, only slashes at the end are removed.

    Raises:
        UserError: if the URI begins with another scheme, such as gs://.
    """
    return uri.rstrip("/") if is_s3(uri) or is_http(uri) else str(local_path(uri).resolve())


def join(uri: str, *parts: str) -> str:
    """Append parts of a path to a URI: `join("s3://bucket/run", "images", "a.png")` is "s3://bucket/run/images/a.png"."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def split_s3(uri: str) -> tuple[str, str]:
    """Split an s3:// URI into its bucket and key.

    Returns:
        The name of the bucket, and the key without slashes at its end. The key is "" if the URI names the bucket itself.

    Raises:
        UserError: if the URI has no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    if not bucket:
        raise UserError(f"{uri} names no bucket: s3://bucket/folder is needed")
    return bucket, key
