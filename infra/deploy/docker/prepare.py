"""Create the S3 bucket of a new installation, and the user account with which the pipeline logs in to MLflow.

If they already exist, they are kept. This script runs once in the MLflow image, as a service of Docker Compose or as a Kubernetes
Job. It reads these environment variables:

* BUCKET: name of the bucket; empty to create none. The server and the credentials come from the standard AWS variables.
* MLFLOW_TRACKING_URI: URL of the MLflow server.
* MLFLOW_AUTH_ADMIN_USERNAME and MLFLOW_AUTH_ADMIN_PASSWORD: MLflow's administrator.
* MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: the user to create.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
import requests
from botocore.exceptions import ClientError

RETRY_SECONDS = 120
"""How many seconds to wait for a server that may still be starting."""

_UNREACHABLE = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError, OSError)


def create_bucket(name: str) -> str:
    """Create an S3 bucket unless it exists. The server and the credentials come from the standard AWS variables.

    Args:
        name: the name of the bucket.

    Returns:
        A message for the log, which says whether the bucket was created or already existed.

    Raises:
        ConnectionError: if the server fails (HTTP status 500 or above). It may help to try again.
        SystemExit: if the bucket can't be used, for example for lack of permission.
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
    """Create an MLflow user. If the user already exists with another password, set the password.

    Args:
        server: URL of MLflow.
        name: name of the user.
        password: the password that the user should have.
        admin: name of MLflow's administrator.
        admin_password: password of the administrator.

    Returns:
        A message that says what was done, for the log.

    Raises:
        SystemExit: if MLflow refuses the request.
    """
    if _request_status("GET", server, "experiments/search?max_results=1", (name, password)) == 200:
        return f"MLflow's user {name} exists"
    new = {"username": name, "password": password}
    if (created := _request_status("POST", server, "users/create", (admin, admin_password), new)) == 200:
        return f"created MLflow's user {name}"
    if created == 401:
        raise SystemExit(
            "MLflow refuses the administrator: it keeps the password of its first start, even if MLFLOW_AUTH_ADMIN_PASSWORD has "
            "changed"
        )
    if (changed := _request_status("PATCH", server, "users/update-password", (admin, admin_password), new)) == 200:
        return f"changed the password of MLflow's user {name}"
    raise SystemExit(f"MLflow does not create the user {name}: it answers {created} and {changed}")


def _request_status(method: str, server: str, call: str, login: tuple[str, str], body: dict[str, str] | None = None) -> int:
    """Send a request to MLflow's REST API.

    Args:
        method: the HTTP method, such as "GET" or "POST".
        server: URL of MLflow.
        call: path of the request below `/api/2.0/mlflow/`, for example "users/create".
        login: name and password with which to log in to MLflow.
        body: JSON object to send; None for none.

    Returns:
        The HTTP status of the answer, which may be that of an error, such as 401.
    """
    return int(requests.request(method, f"{server}/api/2.0/mlflow/{call}", json=body, auth=login, timeout=20).status_code)


def retry_until_reachable(step: Callable[[], str]) -> None:
    """Run a step of the installation and print its message. Repeat it while its server can't be reached.

    It is repeated every two seconds, for up to 120 seconds (RETRY_SECONDS).

    Args:
        step: function without arguments that does the work and returns a message.

    Raises:
        SystemExit: if the server still can't be reached at the end of that time.
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
    """Create the bucket and the MLflow user that the environment variables name, and return 0, the exit code of the script."""
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
