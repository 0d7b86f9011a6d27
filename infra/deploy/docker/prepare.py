"""Creates what a new installation needs: the bucket, and the MLflow user that the pipeline logs in as. What exists is kept.

It runs in the MLflow image, as a one-off service (compose) or Job (Kubernetes), and is configured by environment variables:
BUCKET (empty to create none) and the standard AWS ones; MLFLOW_TRACKING_URI; MLFLOW_AUTH_ADMIN_USERNAME and
MLFLOW_AUTH_ADMIN_PASSWORD; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the user to create.
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

RETRY_SECONDS = 120
"""How long a server that may still be starting is waited for."""

_UNREACHABLE = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError, OSError)


def create_bucket(name: str) -> str:
    """Create a bucket unless it exists.

    Returns:
        What was done, for the log.

    Raises:
        ConnectionError: if the server fails for a passing reason.
        SystemExit: if the bucket can't be used.
    """
    s3 = boto3.client("s3")
    try:
        s3.head_bucket(Bucket=name)
        return f"the bucket {name} exists"
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status >= 500:
            raise ConnectionError(f"S3 answers {status}") from None
        if status != 404:
            raise SystemExit(f"the bucket {name} can't be used: {error}") from None
    region = s3.meta.region_name
    # AWS refuses the name of its default region here.
    location: dict[str, Any] = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=name, **location)
    return f"created the bucket {name}"


def create_user(server: str, name: str, password: str, admin: str, admin_password: str) -> str:
    """Create an MLflow user, or set the password of an existing one.

    Args:
        server: MLflow's URL.
        name: the user's name.
        password: the password that the user should have.
        admin: the administrator's name.
        admin_password: the administrator's password.

    Returns:
        What was done, for the log.

    Raises:
        SystemExit: if MLflow refuses.
    """
    if _request_status(server, "experiments/search?max_results=1", name, password) == 200:
        return f"MLflow's user {name} exists"
    new = {"username": name, "password": password}
    if (created := _request_status(server, "users/create", admin, admin_password, "POST", new)) == 200:
        return f"created MLflow's user {name}"
    if created == 401:
        raise SystemExit(
            "MLflow refuses the administrator: it keeps the password of its first start, even if MLFLOW_AUTH_ADMIN_PASSWORD has changed"
        )
    if (changed := _request_status(server, "users/update-password", admin, admin_password, "PATCH", new)) == 200:
        return f"changed the password of MLflow's user {name}"
    raise SystemExit(f"MLflow does not create the user {name}: it answers {created} and {changed}")


def _request_status(
    server: str, call: str, user: str, password: str, method: str = "GET", body: dict[str, str] | None = None
) -> int:
    """Call MLflow's REST API as a user; returns the HTTP status."""
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{call}",
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def retry_until_reachable(step: Callable[[], str]) -> None:
    """Run a step and print its result; repeat it for up to RETRY_SECONDS while its server can't be reached.

    Raises:
        SystemExit: if the server is not reachable by then.
    """
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            print(step(), flush=True)
            return
        except _UNREACHABLE as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"a server does not answer: {error}") from None
            time.sleep(2)


def main() -> int:
    """Create the bucket and the user; returns the exit code."""
    env = os.environ
    server = env["MLFLOW_TRACKING_URI"].rstrip("/")
    user = env["MLFLOW_TRACKING_USERNAME"], env["MLFLOW_TRACKING_PASSWORD"]
    admin = env["MLFLOW_AUTH_ADMIN_USERNAME"], env["MLFLOW_AUTH_ADMIN_PASSWORD"]
    if bucket := env.get("BUCKET"):
        retry_until_reachable(lambda: create_bucket(bucket))
    retry_until_reachable(lambda: create_user(server, *user, *admin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
