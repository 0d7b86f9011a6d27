#!/usr/bin/env bash
# Makes the secrets that the manifests name, with random values, in the namespace deconvnet. What is there is left as it is.
# S3's key is taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; where pods get a role instead (EKS: annotate the service accounts
# in platform/namespace.yaml), leave both unset and an empty secret is made.
# Checked here: shellcheck; run against a kubectl that only prints (tests/infra/deploy/test_manifests.py).
set -euo pipefail
namespace=deconvnet

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

make() { # NAME KEY=VALUE…: values go through a pipe, not a command line that every user of this machine can read
    local name=$1
    shift
    if kubectl -n "$namespace" get secret "$name" -o name >/dev/null 2>&1; then
        echo "secret $name is there; left as it is"
    else
        printf '%s\n' "$@" | kubectl -n "$namespace" create secret generic "$name" --from-env-file=/dev/stdin
    fi
}

make ray-token "auth_token=$(random)"
make mlflow-server "PGPASSWORD=$(random)" "MLFLOW_AUTH_ADMIN_USERNAME=admin" "MLFLOW_AUTH_ADMIN_PASSWORD=$(random)" \
    "MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)"
make mlflow-client "MLFLOW_TRACKING_USERNAME=pipeline" "MLFLOW_TRACKING_PASSWORD=$(random)"
if [[ -n ${AWS_ACCESS_KEY_ID:-} ]]; then
    make s3 "AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:?}"
else
    make s3
fi
