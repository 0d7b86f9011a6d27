#!/usr/bin/env bash
# Makes infra/deploy/docker/.env from .env.example, with a random value for every empty one. Never overwrites.
# Checked here: shellcheck; run, and its result read by compose (tests/infra/deploy/test_manifests.py).
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.env}
if [[ -e $out ]]; then
    echo "$out is there already; left as it is"
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
echo "made $out, readable by you alone"
