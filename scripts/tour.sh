#!/bin/bash
# Shows a running Wrenn: scripts/tour.sh [COMMAND [ARGUMENT...]] creates a
# sandbox, prints a greeting from it, runs COMMAND in it, and destroys it. It ends
# with COMMAND's exit code. "make run" starts all of Wrenn for it and runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

tell() { # prints a command, quoted for a shell
	local word line=
	for word; do
		[[ $word =~ ^[A-Za-z0-9_./:=,@+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
		line+=" $word"
	done
	printf '\n$%s\n' "$line"
}

show() {
	tell "$@"
	"$@"
}

id=
code=0
# The sandbox is also destroyed when the script is interrupted.
trap '[ -z "$id" ] || bin/wrenn sandbox kill "$id" >/dev/null 2>&1' EXIT

tell bin/wrenn sandbox create
id=$(bin/wrenn sandbox create)
echo "$id"
# shellcheck disable=SC2016 # the sandbox's shell expands it
show bin/wrenn sandbox exec "$id" -- sh -c 'echo hello from $(uname -sr)'
[ $# = 0 ] || show bin/wrenn sandbox exec "$id" -- "$@" || code=$?
show bin/wrenn sandbox kill "$id"
id=
echo
exit "$code"
