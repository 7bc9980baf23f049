#!/bin/bash
# Tests the programs of images/templates on this machine, without a guest: the server
# of the code interpreter with real Jupyter kernels and E2B's SDK.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/recipes
if [[ ! -x $venv/bin/pip ]]; then
	mkdir -p .cache
	python3 -m venv "$venv"
fi
"$venv/bin/pip" install -q --disable-pip-version-check e2b-code-interpreter==2.11.5 e2b==2.63.0 \
	-c images/templates/code-interpreter-v1/requirements.txt jupyter_client ipykernel matplotlib bash_kernel
"$venv/bin/python" -m bash_kernel.install --sys-prefix

log=.cache/recipes/server.log
CODE_INTERPRETER_ADDRESS=127.0.0.1 CODE_INTERPRETER_WORKDIR=/tmp "$venv/bin/python" images/templates/code-interpreter-v1/server.py 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until curl -sf http://127.0.0.1:49999/health >/dev/null; do
	kill -0 "$server" 2>/dev/null || {
		cat "$log" >&2
		exit 1
	}
	sleep 0.2
done
"$venv/bin/python" scripts/code-interpreter.py
