#!/usr/bin/env bash
# Environments of outside servers, each of its own, for tests/peers: tools/peers.sh [FOLDER], by default .peers.
# Then: CERTIBOX_PEERS=$PWD/.peers make test, or .venv/bin/python -m pytest tests/peers
set -euo pipefail
folder="${1:-.peers}"
make_one() {  # name, packages
    local name="$1"
    shift
    test -x "$folder/$name/bin/python" || "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
make_one mlserver mlserver mlserver-sklearn
make_one kserve kserve
