#!/bin/bash
# Runs Schemathesis, which looks for API responses that the contract does not
# allow and for server errors: scripts/schemathesis.sh [DOCUMENT], the URL of a
# document, with the key in WRENN_API_KEY. Without one it tests package api with a
# stub service, and then the whole control plane with a database and an in-memory
# host: both its documents.
# SCHEMATHESIS_EXAMPLES is the number of generated requests for each operation,
# SCHEMATHESIS_SEED what they are generated from.
set -euo pipefail
cd "$(dirname "$0")/.."

version=4.32.5
venv=$PWD/.cache/schemathesis-$version

if [ ! -x "$venv/bin/schemathesis" ]; then
	python3 -m venv "$venv" || { echo "wrenn: please install python3 and python3-venv" >&2; exit 1; }
	"$venv/bin/pip" install --quiet "schemathesis==$version"
fi

if [ $# = 0 ]; then
	# Each test starts a server and runs this script again with the address of its document.
	exec go test -tags schemathesis -v -count=1 -timeout 20m -run '^TestSchemathesis$' ./internal/controlplane/api ./cmd/control-plane
fi

config=$PWD/scripts/schemathesis.toml
if [ "${1##*/}" = e2b.yaml ]; then
	config=$PWD/scripts/schemathesis-e2b.toml
fi
cd .cache # Schemathesis writes its reports to the current directory
exec "$venv/bin/schemathesis" --no-color --config-file "$config" run "$1" \
	--header "X-API-Key: ${WRENN_API_KEY:?}" \
	--max-examples "${SCHEMATHESIS_EXAMPLES:-50}" --seed "${SCHEMATHESIS_SEED:-1}" --warnings off --continue-on-failure --request-timeout 60 \
	--suppress-health-check all # they are about the speed of data generation on this machine
