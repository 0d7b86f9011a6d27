#!/usr/bin/env bash
# Creates the secrets that the manifests need, with random values, in the namespace deconvnet. Existing secrets stay unchanged.
# The S3 key is read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. If pods have a role instead (EKS: annotate the service accounts in
# platform/namespace.yaml), leave both unset; the secret s3 is then empty.
# Tested: shellcheck; run with a stand-in for kubectl (tests/infra/deploy/test_manifests.py).
set -euo pipefail
namespace=deconvnet

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

create_secret() { # NAME KEY=VALUE…: values are piped, since every user of this machine can read command lines
    local name=$1
    shift
    if kubectl -n "$namespace" get secret "$name" -o name >/dev/null 2>&1; then
        echo "secret $name exists; it is left unchanged"
    else
        printf '%s\n' "$@" | kubectl -n "$namespace" create secret generic "$name" --from-env-file=/dev/stdin
    fi
}

create_secret ray-token "auth_token=$(random)"
create_secret mlflow-server "PGPASSWORD=$(random)" "MLFLOW_AUTH_ADMIN_USERNAME=admin" "MLFLOW_AUTH_ADMIN_PASSWORD=$(random)" \
    "MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)"
create_secret mlflow-client "MLFLOW_TRACKING_USERNAME=pipeline" "MLFLOW_TRACKING_PASSWORD=$(random)"
if [[ -n ${AWS_ACCESS_KEY_ID:-} ]]; then
    create_secret s3 "AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:?}"
else
    create_secret s3
fi
