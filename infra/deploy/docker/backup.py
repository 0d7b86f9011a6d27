"""Upload a dump of MLflow's database to the bucket, and delete old ones.

A Kubernetes CronJob runs this script in the MLflow image.
The dump becomes s3://BUCKET/backups/mlflow-DATE.dump, and the newest 30 are kept. The bucket is named by the environment variable
BUCKET; the server and the credentials come from the standard AWS variables.
"""

import os
import sys
from datetime import UTC, datetime

import boto3

KEPT = 30
PREFIX = "backups/mlflow-"


def upload(path: str, bucket: str, now: datetime) -> list[str]:
    """Upload a dump, and delete all but the newest ones.

    Args:
        path: the dump's file.
        bucket: name of the bucket.
        now: the time that the dump is named by.

    Returns:
        The keys of the dumps that are in the bucket now, oldest first.
    """
    s3 = boto3.client("s3")
    s3.upload_file(path, bucket, f"{PREFIX}{now:%Y-%m-%dT%H%M%S}.dump")
    found = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=PREFIX)
    keys = sorted(item["Key"] for page in found for item in page.get("Contents", []))
    for key in keys[:-KEPT]:
        s3.delete_object(Bucket=bucket, Key=key)
    return keys[-KEPT:]


if __name__ == "__main__":
    kept = upload(sys.argv[1], os.environ["BUCKET"], datetime.now(UTC))
    print(f"uploaded {kept[-1]}; {len(kept)} backups are kept")
