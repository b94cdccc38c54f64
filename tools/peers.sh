#!/usr/bin/env bash
# Environments of outside servers and clients, each of its own, for tests/peers: tools/peers.sh [FOLDER [NAME ...]],
# by default all of them (mlserver, kserve, clients, schemathesis) in .peers.
# Then: CERTIBOX_PEERS=$PWD/.peers make test, or .venv/bin/python -m pytest tests/peers
set -euo pipefail
folder="${1:-.peers}"
shift || true
wanted=" ${*:-mlserver kserve clients schemathesis} "
make_one() {  # name, packages
    local name="$1"
    shift
    [[ "$wanted" == *" $name "* ]] || return 0
    test -x "$folder/$name/bin/python" || "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
make_one mlserver mlserver mlserver-sklearn
make_one kserve kserve
make_one clients 'tritonclient[http]' numpy
make_one schemathesis schemathesis
