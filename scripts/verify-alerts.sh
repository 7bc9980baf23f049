#!/bin/bash
# Evaluates each alert of packaging/prometheus with Prometheus' own code. The modules
# are not those of go.mod, because no program needs them.
set -euo pipefail
cd "$(dirname "$0")/.."

export CGO_ENABLED=0
exec go test -trimpath -modfile=packaging/prometheus.mod -tags alerts ./packaging/prometheus
