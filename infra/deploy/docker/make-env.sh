#!/usr/bin/env bash
# Creates infra/deploy/docker/.env from .env.example, with a random value for every empty variable. An existing .env stays unchanged.
# Tested: shellcheck; tests/infra/deploy/test_manifests.py runs it and compares the result with compose.yaml.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.env}
if [[ -e $out ]]; then
    echo "$out exists; it is left unchanged"
    exit 0
fi
umask 077
while IFS= read -r line; do
    if [[ $line =~ ^[A-Z_]+=$ ]]; then
        line+=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    fi
    printf '%s\n' "$line"
done <.env.example >"$out.part"
mv "$out.part" "$out"
echo "created $out, readable by you only"
