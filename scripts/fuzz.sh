#!/bin/bash
# Runs every fuzz target of the module for the time given: scripts/fuzz.sh 5s
set -euo pipefail
cd "$(dirname "$0")/.."

grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while read -r target; do
		echo "== $target ($(dirname "$file"))"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$(dirname "$file")" | tail -n 1
	done
done
