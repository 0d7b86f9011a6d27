#!/usr/bin/env bash
# Creates the secrets that the manifests need, with random values, in the namespaces deconvnet and deconvnet-platform. Existing secrets
# stay unchanged. MLflow's administrator, its key for sessions and PostgreSQL's password are in deconvnet-platform only.
# The S3 key is read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. If pods have a role instead (EKS: annotate the service accounts in
# jobs/accounts.yaml and platform/mlflow.yaml), leave both unset; the secrets s3 are then empty.
# The webhook for messages (Slack) is read from DECONVNET_NOTIFY_URL; without it the secret notify is empty.
# Tested: shellcheck; run with a stand-in for kubectl (tests/infra/deploy/test_kuberay_access.py).
set -euo pipefail
jobs=deconvnet
platform=deconvnet-platform

if [[ -n ${AWS_ACCESS_KEY_ID:-} && -n ${AWS_SESSION_TOKEN:-} ]]; then # nothing renews it in the pods
    echo "AWS_SESSION_TOKEN is set, so the S3 key is temporary and would soon be refused: give a user's key, or a role" >&2
    exit 2
fi

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

create_secret() { # NAMESPACE NAME KEY=VALUE…: values are piped, since every user of this machine can read command lines
    local namespace=$1 name=$2
    shift 2
    if kubectl -n "$namespace" get secret "$name" -o name >/dev/null 2>&1; then
        echo "secret $name exists in $namespace; it is left unchanged"
    else
        printf '%s\n' "$@" | kubectl -n "$namespace" create secret generic "$name" --from-env-file=/dev/stdin
    fi
}

create_secret $jobs ray-token "auth_token=$(random)"
create_secret $jobs redis "REDIS_PASSWORD=$(random)" # for gcs-fault-tolerance/
create_secret $jobs notify ${DECONVNET_NOTIFY_URL:+"DECONVNET_NOTIFY_URL=$DECONVNET_NOTIFY_URL"}
create_secret $platform mlflow-server "PGPASSWORD=$(random)" "MLFLOW_AUTH_ADMIN_USERNAME=admin" "MLFLOW_AUTH_ADMIN_PASSWORD=$(random)" \
    "MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)"

# The jobs' user of MLflow has one password in both namespaces: `prepare` gives it to MLflow, and the jobs log in with it.
client_password() { # that of a namespace which has one already, else a new one
    local namespace found
    for namespace in $jobs $platform; do
        found=$(kubectl -n "$namespace" get secret mlflow-client -o 'jsonpath={.data.MLFLOW_TRACKING_PASSWORD}' 2>/dev/null) || continue
        base64 -d <<<"$found"
        return
    done
    random
}
password=$(client_password)
for namespace in $jobs $platform; do
    create_secret "$namespace" mlflow-client MLFLOW_TRACKING_USERNAME=pipeline "MLFLOW_TRACKING_PASSWORD=$password"
done

key=()
if [[ -n ${AWS_ACCESS_KEY_ID:-} ]]; then
    key=("AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:?}")
fi
for namespace in $jobs $platform; do
    create_secret "$namespace" s3 "${key[@]}"
done
