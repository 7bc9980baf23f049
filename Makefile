# `make help` lists the targets. Everything made goes to bin/ and .cache/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# scripts/setup.sh installs Go there when the system has none, or one that is too old.
export PATH := $(PATH):$(CURDIR)/.cache/go/bin
export CGO_ENABLED ?= 0

# Network namespaces and mounts need root; other users go through sudo.
AS_ROOT  := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
GO_BUILD := go build -trimpath -buildvcs=false -ldflags='-s -w'
# The guest's programs are part of the digest of its image, so no commit is in them.
STAMP = $(if $(COMMIT),-X wrenn.dev/internal/buildinfo.commit=$(COMMIT) -X wrenn.dev/internal/buildinfo.date=$(shell git log -1 --format=%cI))
COMMIT = $(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null)
STAMPED = go build -trimpath -buildvcs=false -ldflags='-s -w $(STAMP)'
TOOL     := go tool -modfile=tools.mod
# The build tags of tests that need root, and of those that also start virtual machines.
ROOT_TAGS := root
VM_TAGS   := root,vm

.PHONY: help
help: ## this list
	@grep -hE '^[a-z/]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z\/]+):.*## /\1\t/' | expand -t 18

.PHONY: setup
setup: ## install missing programs: Go, QEMU, mmdebstrap, PostgreSQL, … (needs root to install)
	@scripts/setup.sh

.PHONY: build
build: setup ## build bin/: wrenn, control-plane, host-agent, and the programs for guests: envd, stage0, mcp-gateway
	@$(GO_BUILD) -o bin/ ./cmd/envd ./cmd/stage0 ./cmd/mcp-gateway
	@$(STAMPED) -o bin/ $(filter-out %/envd %/stage0 %/mcp-gateway,$(wildcard ./cmd/*))

# Apart from a "wrenn up" of the user's on this machine, but for the images.
DEMO := --state /var/lib/wrenn-demo --run /run/wrenn-demo --images /var/lib/wrenn/images --net-range 10.190.0.0/16 --net-prefix wdemo

.PHONY: run
run: build ## start all of Wrenn, run a command in a sandbox, stop; ARGS='ls -l /' runs your own
	$(AS_ROOT) bin/wrenn up $(DEMO) --listen 127.0.0.1:0 -- scripts/tour.sh $(ARGS)

.PHONY: dist
dist: ## make the tarballs and packages of a release in dist/; ARCH='amd64' makes one architecture's
	@scripts/dist.sh $(ARCH)

# Helm's engine takes minutes to build, once: so before the tests, which also use it.
.PHONY: render
render:
	@go build -trimpath -modfile=packaging/helm.mod -o .cache/render packaging/helm/render/main.go

.PHONY: manifests
manifests: render ## write the objects of the Helm chart to dist/kubernetes, for kubectl apply -k; VALUES='a.yaml b.yaml' are files with values
	@mkdir -p dist/kubernetes
	@.cache/render $(foreach file,$(VALUES),-values $(file)) > dist/kubernetes/wrenn.yaml
	@printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: wrenn\nresources: [wrenn.yaml]\n' > dist/kubernetes/kustomization.yaml

.PHONY: images
images: ## write images of control plane and host agent to dist/images, as OCI layouts, reproducibly and without a container engine
	@scripts/images.sh

.PHONY: verify/images
verify/images: ## check that another directory makes the same images
	@scripts/verify-images.sh

.PHONY: verify/install
verify/install: setup ## install, upgrade and remove the package in a booted machine; SUITE=bookworm, trixie (the default) or noble
	$(AS_ROOT) env PATH="$$PATH" scripts/verify-install.sh $(or $(SUITE),trixie)

.PHONY: verify/arm64
verify/arm64: ## boot the guest's programs for arm64 by emulation and use them; needs root, mmdebstrap and qemu-system-arm
	$(AS_ROOT) env PATH="$$PATH" go run -trimpath ./e2e/arm64

.PHONY: verify/alerts
verify/alerts: ## evaluate each alert of packaging/prometheus with Prometheus' own code
	@scripts/verify-alerts.sh

.PHONY: verify/dist
verify/dist: ## check that another directory makes the same tarball, and the package of this architecture
	@scripts/verify-dist.sh

.PHONY: test
test: build render ## run every test that this machine can run; as root that includes virtual machines
	@scripts/test.sh

.PHONY: sdk-matrix
sdk-matrix: build ## call every method of E2B's SDKs, command line and code interpreter, and write the table in docs/e2b.md; ARGS='python 2.63.0' selects; needs root, python3-venv, npm, libnss-myhostname
	$(AS_ROOT) env PATH="$$PATH" bin/wrenn up $(DEMO) --listen 127.0.0.1:0 --domain sandbox.localhost:8443 -- \
		go run ./e2e/sdk/matrix -authority /var/lib/wrenn-demo/tls/sandbox.localhost/ca.pem $(ARGS)

.PHONY: recording
recording: build ## make docs/recording.svg, the terminal in README.md, from a run in real sandboxes; needs root
	$(AS_ROOT) bin/wrenn up $(DEMO) --listen 127.0.0.1:0 -- env PATH="$(CURDIR)/bin:$$PATH" go run -trimpath ./e2e/recording docs/recording.svg

.PHONY: recipes
recipes: ## test the programs of images/templates on this machine, with E2B's SDK; needs python3-venv
	@scripts/recipes.sh

.PHONY: chaos
chaos: ## kill, stop and cut off control planes, host agents, PostgreSQL and the snapshot store under load for MINUTES (default 30), then compare with what clients know (docs/fleet.md); needs root and PostgreSQL
	$(AS_ROOT) env PATH="$$PATH" WRENN_TEST_CHAOS_SECONDS=$$(($(or $(MINUTES),30) * 60)) WRENN_TEST_CHAOS_SEED=$(SEED) \
		go test -trimpath -tags root -count=1 -timeout 24h -run TestChaos -v ./internal/livetest

.PHONY: bench
bench: build ## measure the performance goals, each against the bare limit in the same run
	@scripts/bench.sh $(ARGS)

.PHONY: check
check: setup lint verify/alerts verify/generate breaking ## run linters; check the alerts, generated code, and that protocol changes break no client

.PHONY: lint
lint: ## run gofmt, vet, golangci-lint, buf, shellcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go' ':!proto/gen'))" || { gofmt -l $$(git ls-files '*.go' ':!proto/gen'); exit 1; }
	@$(TOOL) golangci-lint run --build-tags $(VM_TAGS),nested
	@lint=$$($(TOOL) -n golangci-lint) && cd client && "$$lint" run # a module
	@$(TOOL) buf lint
	@shellcheck scripts/*.sh images/*.sh packaging/*.sh examples/*.sh .ci/run

.PHONY: generate
generate: generate/proto generate/api generate/sql ## make all committed generated code

.PHONY: generate/proto
generate/proto: ## make proto/gen from proto
	@$(TOOL) buf generate

.PHONY: generate/api
generate/api: ## make the types of internal/controlplane/{api,e2b} from api/
	@$(TOOL) oapi-codegen -config internal/controlplane/api/internal/oapi/config.yaml api/openapi.yaml
	@$(TOOL) oapi-codegen -config internal/controlplane/e2b/internal/oapi/config.yaml api/e2b.yaml

.PHONY: generate/sql
generate/sql: ## make the queries of internal/controlplane/postgres from db/queries
	@$(TOOL) sqlc generate -f db/sqlc.yaml

.PHONY: verify/generate
verify/generate: generate
	@git diff --exit-code --stat -- proto/gen internal/controlplane/api/internal/oapi internal/controlplane/e2b/internal/oapi internal/controlplane/postgres/internal/dbsqlc || { echo 'generated code differs from its sources: commit the output of "make generate"'; exit 1; }

# Not npm ci: it wants a package in the lock file that one of the others names for Windows alone.
.PHONY: dashboard
dashboard: ## build the dashboard, which the control plane embeds, from web/ (needs npm)
	@cd web && npm install --no-save --no-audit --no-fund --loglevel=error && npm run --silent types && npm run --silent check && npm run --silent build -- --logLevel warn

.PHONY: verify/dashboard
verify/dashboard: dashboard
	@test -z "$$(git status --porcelain -- internal/controlplane/dashboard/dist)" || { echo 'the dashboard differs from its sources: commit the output of "make dashboard"'; exit 1; }

.PHONY: schemathesis
schemathesis: setup ## find API responses that the contract does not allow (needs python3-venv); SCHEMATHESIS_EXAMPLES for each operation, default 50
	@SCHEMATHESIS_EXAMPLES=$(or $(SCHEMATHESIS_EXAMPLES),50) scripts/schemathesis.sh

.PHONY: verify/clients
verify/clients: setup ## try clients for Python and TypeScript that are generated from the API's contract (needs python3-venv, npm, curl)
	$(AS_ROOT) env PATH="$$PATH" scripts/clients.sh

.PHONY: breaking
breaking: ## check that the protocols still serve clients of proto/baseline.binpb
	@mkdir -p .cache
	@$(TOOL) buf build --exclude-source-info -o .cache/protocols.binpb # all modules in one image, as the baseline is; buf would otherwise compare module by module
	@$(TOOL) buf breaking .cache/protocols.binpb --against proto/baseline.binpb

.PHONY: baseline
baseline: ## accept the current protocols as the new baseline
	@$(TOOL) buf build --exclude-source-info -o proto/baseline.binpb

.PHONY: fuzz
fuzz: setup ## run every fuzz target for FUZZTIME (default 5s)
	@scripts/fuzz.sh $(or $(FUZZTIME),5s)

.PHONY: clean
clean: ## remove bin, dist, .cache and web/node_modules; images in /var/lib/wrenn, and what make run left in /var/lib/wrenn-demo, stay
	@rm -rf bin dist .cache web/node_modules
