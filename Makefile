# `make help` lists the targets. Everything made goes to bin/ and .cache/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# scripts/setup.sh puts a Go of its own there when the system has none, or one too old.
export PATH := $(PATH):$(CURDIR)/.cache/go/bin
export CGO_ENABLED ?= 0

# Network namespaces and mounts need root; who is not asks sudo.
AS_ROOT  := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
GO_BUILD := go build -trimpath -buildvcs=false -ldflags='-s -w'
TOOL     := go tool -modfile=tools.mod
# The tests that need root, in the order in which they say most about a broken house.
ROOT_TAGS := root
VM_TAGS   := root,vm

.PHONY: help
help: ## this list
	@grep -hE '^[a-z/]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z\/]+):.*## /\1\t/' | expand -t 18

.PHONY: setup
setup: ## install what is missing: Go, QEMU, mmdebstrap, PostgreSQL, … (needs root when something is)
	@scripts/setup.sh

.PHONY: build
build: setup ## bin/: wrenn, control-plane, host-agent, and what goes into guests: envd, stage0
	@$(GO_BUILD) -o bin/ ./cmd/...

.PHONY: run
run: build ## start all of Wrenn, run a command in a sandbox, stop; ARGS='ls -l /' for one of yours
	$(AS_ROOT) bin/wrenn up --listen 127.0.0.1:0 -- scripts/tour.sh $(ARGS)

.PHONY: test
test: build ## every test that this machine can run; as root that includes real machines
	@scripts/test.sh

.PHONY: sdk-matrix
sdk-matrix: build ## E2B's SDKs, all versions that we know, against all of Wrenn; needs root, python3-venv, npm
	@eval "$$(bin/host-agent image prepare --images /var/lib/wrenn --export)"; \
	WRENN_SDK_MATRIX=1 WRENN_TEST_IMAGES=/var/lib/wrenn go test -tags $(VM_TAGS) -count=1 -v -timeout 60m -run '^TestSDKs$$' ./e2e

.PHONY: bench
bench: build ## the promises in numbers, each against the bare limit in the same run
	@scripts/bench.sh $(ARGS)

.PHONY: check
check: setup lint verify/generate breaking ## linters, generated code, and that the protocols broke no client

.PHONY: lint
lint: ## format, vet, golangci-lint, buf, shellcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go' ':!proto/gen'))" || { gofmt -l $$(git ls-files '*.go' ':!proto/gen'); exit 1; }
	@$(TOOL) golangci-lint run --build-tags $(VM_TAGS),nested
	@$(TOOL) buf lint
	@shellcheck scripts/*.sh images/*.sh .ci/run

.PHONY: generate
generate: generate/proto generate/api generate/sql ## all committed generated code

.PHONY: generate/proto
generate/proto: ## make proto/gen from proto
	@$(TOOL) buf generate

.PHONY: generate/api
generate/api: ## make the server types of internal/controlplane/api from api/openapi.yaml
	@$(TOOL) oapi-codegen -config internal/controlplane/api/internal/oapi/config.yaml api/openapi.yaml

.PHONY: generate/sql
generate/sql: ## make the queries of internal/controlplane/postgres from db/queries
	@$(TOOL) sqlc generate -f db/sqlc.yaml

.PHONY: verify/generate
verify/generate: generate
	@git diff --exit-code --stat -- proto/gen internal/controlplane/api/internal/oapi internal/controlplane/postgres/internal/dbsqlc || { echo 'generated code is not what its sources say: commit what "make generate" made'; exit 1; }

.PHONY: schemathesis
schemathesis: setup ## look for answers that are not in the contract (needs python3-venv); SCHEMATHESIS_EXAMPLES for each operation, default 50
	@SCHEMATHESIS_EXAMPLES=$(or $(SCHEMATHESIS_EXAMPLES),50) scripts/schemathesis.sh

.PHONY: breaking
breaking: ## that the protocols still serve the clients of proto/baseline.binpb
	@mkdir -p .cache
	@$(TOOL) buf build --exclude-source-info -o .cache/protocols.binpb # of all modules: buf compares one by one with what is in one image
	@$(TOOL) buf breaking .cache/protocols.binpb --against proto/baseline.binpb

.PHONY: baseline
baseline: ## accept the protocols as they are now as what clients rely on
	@$(TOOL) buf build --exclude-source-info -o proto/baseline.binpb

.PHONY: fuzz
fuzz: setup ## every fuzz target for FUZZTIME (default 5s)
	@scripts/fuzz.sh $(or $(FUZZTIME),5s)

.PHONY: clean
clean: ## remove what was built here; images and machines in /var/lib/wrenn stay
	@rm -rf bin .cache
