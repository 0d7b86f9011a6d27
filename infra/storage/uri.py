"""URIs of files and folders: a local path, file://, s3:// or, for reading, http(s)://."""

from pathlib import Path

from infra.errors import UserError


def is_s3(uri: str) -> bool:
    """True for s3:// URIs."""
    return uri.startswith("s3://")


def is_http(uri: str) -> bool:
    """True for http:// and https:// URIs."""
    return uri.startswith(("http://", "https://"))


def local_path(uri: str) -> Path:
    """The path of a local URI, with ~ expanded.

    Raises:
        UserError: if the URI is not local.
    """
    if "://" in uri and not uri.startswith("file://"):
        raise UserError(f"{uri} can't be used here: a local path or an s3:// URI is needed")
    return Path(uri.removeprefix("file://")).expanduser()


def absolute(uri: str) -> str:
    """Make a local path absolute, since workers run in other folders; URIs of S3 and HTTP stay as they are."""
    return uri.rstrip("/") if is_s3(uri) or is_http(uri) else str(local_path(uri).resolve())


def join(uri: str, *parts: str) -> str:
    """Append path components to a URI: `join("s3://bucket/run", "images", "a.png")`."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def split_s3(uri: str) -> tuple[str, str]:
    """Split an s3:// URI.

    Returns:
        The bucket, and the key without a slash at its end; the key is "" for the bucket itself.

    Raises:
        UserError: if the URI has no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    if not bucket:
        raise UserError(f"{uri} names no bucket: s3://bucket/folder is needed")
    return bucket, key
