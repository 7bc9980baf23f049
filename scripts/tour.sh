#!/bin/bash
# What a user does with a Wrenn that runs: scripts/tour.sh [COMMAND [ARGUMENT...]]
# makes a sandbox, greets from it, runs COMMAND in it, and destroys it. It ends
# with the exit code of COMMAND. "make run" starts all of Wrenn around it.
set -euo pipefail
cd "$(dirname "$0")/.."

tell() { # prints a command as a shell takes it
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
# When it is interrupted, the sandbox goes, too.
trap '[ -z "$id" ] || bin/wrenn sandbox kill "$id" >/dev/null 2>&1' EXIT

tell bin/wrenn sandbox create
id=$(bin/wrenn sandbox create)
echo "$id"
# shellcheck disable=SC2016 # the sandbox's kernel is meant
show bin/wrenn sandbox exec "$id" -- sh -c 'echo hello from $(uname -sr)'
[ $# = 0 ] || show bin/wrenn sandbox exec "$id" -- "$@" || code=$?
show bin/wrenn sandbox kill "$id"
id=
echo
exit "$code"
