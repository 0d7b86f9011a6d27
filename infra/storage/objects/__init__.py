"""Object stores behind one interface (`store.ObjectStore`): S3, Google Cloud Storage and Azure Blob Storage."""

from infra.storage.objects import azure, gcs, s3
from infra.storage.objects.store import ObjectStore

_STORES: dict[str, ObjectStore] = {"s3": s3, "gs": gcs, "abfs": azure}


def store_of(uri: str) -> ObjectStore | None:
    """Return the store of a URI that begins with s3://, gs:// or abfs://; None for other URIs and for local paths."""
    scheme, found, _ = uri.partition("://")
    return _STORES.get(scheme) if found else None
