#!/bin/bash
# Lets Schemathesis look for answers that are not in the contract, and for
# faults: scripts/schemathesis.sh [URL], with the key in WRENN_API_KEY. Without
# a URL it tries the surface over a stub of the service, and the whole control
# plane over a database and a host in memory.
# SCHEMATHESIS_EXAMPLES is how many requests it makes up for each operation.
set -euo pipefail
cd "$(dirname "$0")/.."

version=4.32.5
venv=$PWD/.cache/schemathesis-$version

if [ ! -x "$venv/bin/schemathesis" ]; then
	python3 -m venv "$venv" || { echo "wrenn: please install python3 and python3-venv" >&2; exit 1; }
	"$venv/bin/pip" install --quiet "schemathesis==$version"
fi

if [ $# = 0 ]; then
	# The tests start a server each, and this script again with its address.
	exec go test -tags schemathesis -v -count=1 -timeout 20m -run '^TestSchemathesis$' ./internal/controlplane/api ./cmd/control-plane
fi

config=$PWD/scripts/schemathesis.toml
cd .cache # where it leaves what it found
exec "$venv/bin/schemathesis" --no-color --config-file "$config" run "$1/openapi.yaml" \
	--header "X-API-Key: ${WRENN_API_KEY:?}" \
	--max-examples "${SCHEMATHESIS_EXAMPLES:-50}" --seed 1 --warnings off --continue-on-failure --request-timeout 60 \
	--suppress-health-check all # how fast it makes data up on this machine is not the question
