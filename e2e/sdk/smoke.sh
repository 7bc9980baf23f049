#!/bin/bash
# What users of E2B's command line do first, against Wrenn. E2B_API_URL and
# E2B_SANDBOX_URL, or E2B_DOMAIN, and E2B_API_KEY say where it is; the argument is
# the program. It ends with 0 and prints "ok" when everything was as it should be.
# Each call starts node, which takes most of the time.
set -euo pipefail
e2b=$1
export HOME=$PWD NO_UPDATE_NOTIFIER=1 # the user's own configuration does not count

check() { # WHAT GOT WANT
	[ "$2" = "$3" ] || { printf '%s: got %q, want %q\n' "$@"; exit 1; }
}
sandboxes() { # prints the ids of those that run, one a line
	node "$e2b" sandbox list --format json | grep -oE '"sandboxI[dD]": *"[a-z0-9]+"' | grep -oE 'i[a-z0-9]{20}' || true
}

created=$(node "$e2b" sandbox create base --detach --timeout 600)
id=$(grep -oE '\bi[a-z0-9]{20}\b' <<<"$created" | head -n 1)
trap 'node "$e2b" sandbox kill "$id" >/dev/null 2>&1 || true' EXIT

grep -qx "$id" <<<"$(sandboxes)" || { echo "$id is not listed"; exit 1; }
check input "$(echo input | node "$e2b" sandbox exec "$id" 'cat; whoami')" $'input\nuser'
status=0
out=$(node "$e2b" sandbox exec -u root -c /tmp -e GREETING=hi "$id" 'echo $(id -u) $PWD $GREETING; exit 3' 2>&1) || status=$?
check 'exit code' "$status" 3
check 'exec as root' "$(head -n 1 <<<"$out")" '0 /tmp hi'
info=$(node "$e2b" sandbox info "$id" --format json)
grep -q "$id" <<<"$info" || { echo "info prints $info"; exit 1; }
templates=$(node "$e2b" template list --format json)
grep -q '"base"' <<<"$templates" || { echo "the templates are $templates"; exit 1; }

node "$e2b" sandbox kill "$id" >/dev/null
trap - EXIT
if grep -qx "$id" <<<"$(sandboxes)"; then echo 'it is listed after it was killed'; exit 1; fi
echo ok
