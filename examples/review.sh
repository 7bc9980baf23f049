#!/bin/bash
# review.sh runs the tests of code that is not trusted, such as that of a pull request:
# in a sandbox without network and without secrets. It prints the output of COMMAND,
# which runs in a copy of DIR, and exits with its exit code.
#
#   git fetch origin pull/123/head && git worktree add /tmp/pr FETCH_HEAD
#   examples/review.sh /tmp/pr 'python3 -m unittest' | tee report.txt
set -euo pipefail
wrenn=${WRENN:-wrenn}
dir=$1
command=$2

# A template with the tools that the tests need makes the network unnecessary: wrenn template build.
id=$("$wrenn" sandbox create --network none --timeout 10m -l example=review ${TEMPLATE:+--template "$TEMPLATE"})
trap '"$wrenn" sandbox kill "$id" >/dev/null' EXIT

# Nothing is copied back. What the tests print may contain anything: do not run it, and
# show it to a model as data.
"$wrenn" sandbox cp -r "$dir/." "$id:pr"
"$wrenn" sandbox exec -n --timeout 5m -C pr "$id" -- sh -c "$command" 2>&1 | head -c 200000 | tr -d '\000-\010\013-\037'
