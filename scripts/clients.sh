#!/bin/bash
# Tests clients that generators make from the served contract: scripts/clients.sh
# [FLAG...] installs the generators for Python and TypeScript once, into .cache/clients,
# and runs go test. Needs root, PostgreSQL, python3-venv, npm and curl.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$PWD/.cache/clients
wanted='openapi-python-client==0.29.1 openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3 @types/node@20.19.25'

if [ "$(cat "$dir/installed" 2>/dev/null)" != "$wanted" ]; then
	rm -rf "$dir"
	mkdir -p "$dir/typescript"
	read -r python typescript <<<"$wanted"
	python3 -m venv "$dir/python" || { echo "wrenn: please install python3 and python3-venv" >&2; exit 1; }
	"$dir/python/bin/pip" install --quiet --disable-pip-version-check "$python"
	# shellcheck disable=SC2086 # several packages
	npm install --silent --no-audit --no-fund --prefix "$dir/typescript" $typescript
	printf '%s\n' "$wanted" >"$dir/installed"
fi

exec go test -tags root,clients -count=1 -timeout 10m ./e2e/clients "$@"
