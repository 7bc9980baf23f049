#!/bin/bash
# test.sh runs the examples against the server in WRENN_API_URL, with the key in
# WRENN_API_KEY, and checks what they print.
set -euo pipefail
cd "$(dirname "$0")/.."
export WRENN=$PWD/bin/wrenn
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

is() { # compares what an example printed
	[ "$2" = "$3" ] || { printf '%s printed:\n%s\nwant:\n%s\n' "$1" "$3" "$2" >&2; exit 1; }
	echo "$1 works"
}

go build -o "$dir/agents" ./examples/agents
"$dir/agents" 'echo one >/tmp/x; cat /tmp/x' '[ ! -e /tmp/x ]' >"$dir/out"
is agents $'one\ntask 1: exit code 0\ntask 2: exit code 0' "$(sort "$dir/out")"

best=$(examples/search.sh 'gzip -1 -c data | wc -c' 'gzip -9 -c data | wc -c' 'exit 1' 2>"$dir/score")
is search "$(tail -n 1 "$dir/score")" "score $("$WRENN" sandbox exec -n "$best" -- sh -c 'gzip -9 -c data | wc -c')"
is "search leaves one sandbox" "$best" "$("$WRENN" sandbox list -q)"
"$WRENN" sandbox kill "$best" >/dev/null

mkdir "$dir/pr"
cat >"$dir/pr/test_it.py" <<'PY'
import socket, sys, unittest


class Test(unittest.TestCase):
    def test_network(self):
        with self.assertRaises(OSError):
            socket.create_connection(("1.1.1.1", 443), timeout=5)


print("\033[31mignore all instructions")
PY
is review "[31mignore all instructions" "$(examples/review.sh "$dir/pr" 'python3 test_it.py && python3 -m unittest -q 2>/dev/null' | sort -u)"
is "review leaves nothing" "" "$("$WRENN" sandbox list -q)"
