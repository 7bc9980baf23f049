#!/bin/bash
# search.sh prepares one sandbox, tries several ways in copies of it at the same time,
# and keeps the copy with the lowest score. Each argument is a way: a shell command
# whose last line of output is its score. It prints the id of the best copy.
#
#   examples/search.sh 'gzip -1 -c data | wc -c' 'gzip -9 -c data | wc -c'
set -euo pipefail
wrenn=${WRENN:-wrenn}
run=search-$$-$RANDOM # a label, by which this run finds its sandboxes
scores=$(mktemp -d)
best=

end() { # destroys all sandboxes but the best, also after Ctrl-C and errors
	for id in $("$wrenn" sandbox list -q -l run="$run"); do
		[ "$id" = "$best" ] || "$wrenn" sandbox kill "$id" >/dev/null
	done
	rm -rf "$scores"
}
trap end EXIT

base=$("$wrenn" sandbox create --timeout 10m -l run="$run")
# What is slow and the same for all ways is done once: clone, install, load.
"$wrenn" sandbox exec -n "$base" -- sh -c 'seq 200000 >data'
"$wrenn" checkpoint create "$base" prepared >/dev/null # to begin again from here later

# Copies have the files, the memory and the running programs of the base.
mapfile -t copies < <("$wrenn" sandbox fork "$base" --count $#)
for id in "${copies[@]}"; do
	"$wrenn" sandbox exec -n --timeout 2m "$id" -- sh -c "$1" >"$scores/$id" & # a way that fails has no score
	shift
done
wait

best=$(for id in "${copies[@]}"; do echo "$(tail -n 1 "$scores/$id") $id"; done | grep '^[0-9]' | sort -n | head -n 1 | cut -d ' ' -f 2)
[ -n "$best" ] || { echo "no way had a score" >&2; exit 1; }
echo "score $(tail -n 1 "$scores/$best")" >&2
echo "$best"
