#!/bin/bash
# Runs the benchmarks: scripts/bench.sh [-run regexp] [-rounds N]
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo 'wrenn: the benchmarks boot machines: run make bench as root' >&2; exit 1; }
exec go run ./bench "$@"
