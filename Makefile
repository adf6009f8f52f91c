# Keyherald. `make help` lists the targets.
TAGS := goolm
GO   ?= go

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: help build dist test test-synapse kms demo interop bench chaos chaos-controls tamper campaign fleet vet fmt lint fuzz vuln setup setup-interop clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/keyherald, bin/keyherald-device and bin/keyherald-verify (pure Go)
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -o bin/ ./cmd/...

# The same commit and the same Go make the same bytes, wherever they are made.
dist: ## Build the auditor's keyherald-verify for Linux, macOS and Windows into dist/, with checksums (VERSION=…)
	@rm -rf dist && mkdir -p dist
	@for system in linux darwin windows; do for arch in amd64 arm64; do \
	  exe=; test $$system != windows || exe=.exe; \
	  CGO_ENABLED=0 GOFLAGS= GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0 GOOS=$$system GOARCH=$$arch $(GO) build -trimpath -buildvcs=false \
	    -ldflags '-s -w -buildid= -X main.stamped=$(VERSION)' -o dist/keyherald-verify-$$system-$$arch$$exe ./cmd/keyherald-verify || exit 1; \
	done; done
	@cd dist && { sha256sum keyherald-verify-* 2>/dev/null || shasum -a 256 keyherald-verify-*; } > SHA256SUMS && cat SHA256SUMS

setup: ## Install or build what the tests need: PostgreSQL, a C compiler for -race, Dendrite
	@scripts/setup-test-parts.sh

setup-interop: ## The same, and npm and Python for what make interop and Synapse are installed with
	@scripts/setup-test-parts.sh interop

# Tests wait for real parts more than they compute: four at a time, on however few processors.
test: setup ## Run all tests on real parts, with the race detector
	$(GO) test -race -tags $(TAGS) -parallel 4 -timeout 40m ./...

test-synapse: setup-interop ## Run the end-to-end and the key-backup tests on Synapse in place of Dendrite
	KEYHERALD_TEST_HOMESERVER=synapse $(GO) test -count=1 -race -tags $(TAGS) -timeout 60m ./keyheraldtest/e2e ./backup

kms: ## Run the KMS clients against real servers: Vault (built the first time, ten minutes or more) and moto
	@scripts/setup-test-parts.sh kms
	$(GO) test -race -tags $(TAGS),kms -count=1 -timeout 20m ./keyheraldtest/kms
	$(GO) test -tags $(TAGS),kms -count=1 -run WithVault ./keyheraldtest/demo

demo: $(if $(filter synapse,$(HS)),setup-interop,setup) build ## Watch whole rotations on real parts, checked; KEEP=1 leaves everything running, HS=synapse, KMS=vault
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/demo -homeserver $(or $(HS),dendrite) -kms $(or $(KMS),setec) $(if $(KEEP),-keep)

interop: setup-interop build ## Run the main job on Dendrite and Synapse with real clients of other makers: a table (ONLY=synapse for one, KEEP=1 leaves the logs)
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/interop $(if $(ONLY),-only $(ONLY)) $(if $(KEEP),-keep)

bench: setup-interop build ## Measure beside what to compare with: a table, and bench/results.json (ROUNDS=15; ROWS=intake,carryover for some)
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/bench -rounds $(or $(ROUNDS),15) $(if $(ROWS),-rows $(ROWS))

chaos: setup build ## Kill, cut, refuse and restore under a stream of rotations, then count (CHAOS_KILLS=200, CHAOS_SEED=1)
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/chaos -kills $(or $(CHAOS_KILLS),200) -seed $(or $(CHAOS_SEED),1)

chaos-controls: setup ## Prove that chaos finds faults: programs that have them on purpose must fail (CHAOS_KILLS=12)
	@mkdir -p bin/sabotage && CGO_ENABLED=0 $(GO) build -tags $(TAGS),sabotage -trimpath -o bin/sabotage/ ./cmd/...
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/chaos -controls -programs bin/sabotage -kills $(or $(CHAOS_KILLS),12) -seed $(or $(CHAOS_SEED),1)

tamper: setup build ## Alter a log of real rotations in every way, and count what is not detected (TAMPER_EVENTS=10000)
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/tamper -events $(or $(TAMPER_EVENTS),10000)

campaign: setup build ## Move 10,000 users by one campaign, with the homeserver simulated in process, and count (CAMPAIGN_USERS=10000)
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/campaign -users $(or $(CAMPAIGN_USERS),10000) $(if $(KEEP),-keep)

fleet: setup-interop build ## Bring a thousand accounts into being with nobody typing, on Synapse, and look at them from outside (FLEET=100)
	@CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -o bin/test/login ./keyheraldtest/cmd/login
	@$(GO) run -tags $(TAGS) ./keyheraldtest/cmd/fleet -accounts $(or $(FLEET),1000) $(if $(KEEP),-keep)

vet: ## Run go vet
	$(GO) vet -tags $(TAGS),kms ./...

fmt: ## Fail if a file is not gofmt-ed
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted"; exit 1; }

GOLANGCI := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/keyherald/golangci-lint-v2.12.0
lint: ## Run golangci-lint (config: .golangci.yml), built the first time
	@test -x $(GOLANGCI)/golangci-lint || { echo "building golangci-lint (once, some minutes) …"; GOBIN=$(GOLANGCI) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.0; }
	$(GOLANGCI)/golangci-lint run ./...

fuzz: ## Fuzz every parser for FUZZTIME (default 10s) each
	@for target in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z]*' $$target/*_test.go | cut -d' ' -f2); do \
	    $(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(FUZZTIME),10s) -fuzzminimizetime 10x $$target || exit 1; done; done

vuln: ## Run govulncheck (needs to reach its database)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@latest -tags $(TAGS) ./...

clean: ## Remove what was built here
	rm -rf bin dist
