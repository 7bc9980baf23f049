#!/bin/bash
# Runs every test that this machine can run, cheapest first, and says what was
# left out and why. With WRENN_CI=1 nothing may be left out.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
left_out() {
	say "left out: $*"
	[ "${WRENN_CI:-}" != 1 ] || { echo "WRENN_CI=1 allows nothing to be left out" >&2; exit 1; }
}

say 'unit tests (no root, no machines)'
go test ./...

if [ "$(id -u)" != 0 ]; then
	left_out 'tests of namespaces and machines: they need root'
	exit 0
fi

say 'tests as root: network namespaces, ownership, full disks'
go test -tags root ./internal/...

say 'tests as root: real machines under QEMU'
eval "$(bin/host-agent image prepare --export)"
go test -tags root,vm -timeout 20m -p 1 ./internal/... ./e2e/...

if [ -z "${WRENN_FIRECRACKER_DIR:-}" ]; then
	left_out 'Firecracker: set WRENN_FIRECRACKER_DIR to a directory with vX.Y.Z/firecracker and jailer'
	exit 0
fi
say 'tests as root: real machines under Firecracker, in a QEMU guest with nested virtualisation'
go test -tags nested -timeout 20m -v ./e2e/nested
