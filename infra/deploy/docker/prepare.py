"""What a new installation needs once: the bucket, and the MLflow user that the pipeline logs in as. Does nothing twice.

Runs in the MLflow image, as a one-off service (compose) or Job (Kubernetes), by variables alone: BUCKET and the AWS ones;
MLFLOW_TRACKING_URI, MLFLOW_AUTH_ADMIN_USERNAME and …_PASSWORD, and the user's MLFLOW_TRACKING_USERNAME and …_PASSWORD.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
from botocore.exceptions import ClientError

PATIENCE_SECONDS = 120  # for servers that are still starting
UNREACHABLE = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError, OSError)


def make_bucket(name: str) -> str:
    """Make the bucket `name` where it is missing; what was done."""
    s3 = boto3.client("s3")
    try:
        s3.head_bucket(Bucket=name)
        return f"the bucket {name} is there"
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status >= 500:
            raise ConnectionError(f"S3 answers {status}") from None
        if status != 404:
            raise SystemExit(f"the bucket {name} can't be used: {error}") from None
    region = s3.meta.region_name
    # AWS takes its first region's name only unsaid.
    where: dict[str, Any] = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=name, **where)
    return f"made the bucket {name}"


def make_user(server: str, name: str, password: str, admin: str, admin_password: str) -> str:
    """Make MLflow's user `name` where it is missing, and give it `password` where it has another; what was done."""
    if _asked(server, "experiments/search?max_results=1", name, password) == 200:
        return f"MLflow's user {name} is there"
    new = {"username": name, "password": password}
    if (made := _asked(server, "users/create", admin, admin_password, "POST", new)) == 200:
        return f"made MLflow's user {name}"
    if made == 401:
        raise SystemExit("MLflow refuses its administrator: the first start's password holds, whatever the variable says now")
    if (changed := _asked(server, "users/update-password", admin, admin_password, "PATCH", new)) == 200:
        return f"gave MLflow's user {name} a new password"
    raise SystemExit(f"MLflow makes no user {name}: it answers {made} and {changed}")


def _asked(server: str, call: str, user: str, password: str, method: str = "GET", body: dict[str, str] | None = None) -> int:
    """The status that a call of MLflow's REST API ends with."""
    key = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{call}",
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Basic {key}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def patiently(make: Callable[[], str]) -> None:
    """Print what `make()` says; called again while its server can't be reached, for PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            print(make(), flush=True)
            return
        except UNREACHABLE as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"a server does not answer: {error}") from None
            time.sleep(2)


def main() -> int:
    env = os.environ
    server = env["MLFLOW_TRACKING_URI"].rstrip("/")
    user = env["MLFLOW_TRACKING_USERNAME"], env["MLFLOW_TRACKING_PASSWORD"]
    admin = env["MLFLOW_AUTH_ADMIN_USERNAME"], env["MLFLOW_AUTH_ADMIN_PASSWORD"]
    if bucket := env.get("BUCKET"):
        patiently(lambda: make_bucket(bucket))
    patiently(lambda: make_user(server, *user, *admin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
