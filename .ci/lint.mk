# What `make lint` asks; included by the top Makefile, whose GO, BUILD and TAGS it uses. golangci-lint is built from the
# version pinned in .ci/lint/go.mod when it is missing or older than its go.sum: three minutes on two cores, cold.

LINT     := $(BUILD)/bin/golangci-lint
LINT_MOD := $(CURDIR)/.ci/lint
MODULES  := . k3d/lab/tools k3d/lab/tools/peer k3d/lab/tools/headscale k3d/lab/tools/prom k3d/lab/tools/bench k3d/lab/tools/kube k3d/lab/tools/addons .ci/lint

# All of our own files, also those that are not committed yet.
lint_files = $(wildcard $(shell git ls-files --cached --others --exclude-standard -- $1))

.PHONY: lint
lint: lint-files lint-format lint-shell lint-modules lint-go ## look for mistakes and for breaches of the house style

.PHONY: lint-files
lint-files:
	@.ci/files || { echo "lint: the files above are too long or lack their first line"; exit 1; }

.PHONY: lint-format
lint-format:
	@bad=$$("$$($(GO) env GOROOT)/bin/gofmt" -l $(call lint_files,'*.go')) && [ -z "$$bad" ] || \
		{ echo "$$bad"; echo "lint: not formatted; run: make fmt"; exit 1; }

.PHONY: lint-shell
lint-shell:
	@k3d/lab/tools/debian.sh shellcheck
	@shellcheck $(shell grep -lE '^#!.*[ /](ba|da)?sh( |$$)' $(call lint_files,)) || \
		{ echo "lint: shellcheck found the above"; exit 1; }

.PHONY: lint-modules
lint-modules:
	@for dir in $(MODULES); do \
		(cd $$dir && $(GO) mod verify >/dev/null && $(GO) mod tidy -e -diff) || \
			{ echo "lint: the modules of $$dir are not in order; run there: go mod tidy -e"; exit 1; }; \
	done

# Twice: tailscale.com/tsnet, which tests of the lab use, does not compile with the tags of the program.
.PHONY: lint-go
lint-go: $(LINT)
	@nice $(LINT) run --build-tags $(TAGS) ./engine/... ./nri-plugin/... || failed=1; \
		nice $(LINT) run ./k3d/... ./deploy/... || failed=1; \
		[ -z "$$failed" ] || { echo "lint: golangci-lint found the above (.golangci.yaml)"; exit 1; }

.PHONY: fmt
fmt: $(LINT) ## format the Go files
	@$(LINT) fmt $(call lint_files,'*.go')

$(LINT): $(LINT_MOD)/go.sum
	@echo "building golangci-lint (three minutes, once)"
	@cd $(LINT_MOD) && CGO_ENABLED=0 nice $(GO) build -trimpath -buildvcs=false -ldflags "-s -w" -o $@ \
		github.com/golangci/golangci-lint/v2/cmd/golangci-lint && touch $@
