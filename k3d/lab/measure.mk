# What the lab measures; included by the top Makefile, whose GO, BUILD, TAGS and VERSION it uses. Variables that are not
# set are left to the commands' defaults. BENCH holds flags of `lab bench`, such as
# BENCH="-only memory -before /path/to/another/tailscale-nri".

BENCH ?=
BENCH_TOOLS := $(CURDIR)/k3d/lab/tools/bench

.PHONY: bench
bench: build lab-tools $(BUILD)/bin/benchstat ## measure attach, traffic, memory and CPU time, next to a stock tailscaled (40 minutes)
	@$(BUILD)/bin/lab bench $(BENCH)
	@$(BUILD)/bin/benchstat -col /of $(BUILD)/bench.txt

$(BUILD)/bin/benchstat: $(BENCH_TOOLS)/go.sum
	@echo "building $(notdir $@)"
	@cd $(BENCH_TOOLS) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ golang.org/x/perf/cmd/benchstat && touch $@

.PHONY: profile
profile: ## build a tailscale-nri that serves profiles on a socket (k3d/lab/bench/doc.go)
	@CGO_ENABLED=0 nice $(GO) build -tags $(TAGS),profile -trimpath -buildvcs=false \
		-ldflags "-s -w -X main.version=$(VERSION)-profile" -o $(BUILD)/bench/profile ./nri-plugin

# ROUNDS is for one pod and, if given, for many.
.PHONY: blackout
blackout: build lab-tools ## measure the gaps of traffic when things restart, next to stock tailscaleds: blackout.json (30 minutes; PODS=50 ROUNDS=5)
	@$(BUILD)/bin/lab blackout $(if $(PODS),-pods $(PODS)) $(if $(ROUNDS),-rounds $(ROUNDS)) -json $(CURDIR)/blackout.json

.PHONY: soak
soak: build lab-tools ## have pods come and go while everything around them fails, and look for leaks (CYCLES=1000 SEED=1 PARALLEL=8)
	@$(BUILD)/bin/lab soak $(if $(CYCLES),-cycles $(CYCLES)) $(if $(SEED),-seed $(SEED)) $(if $(PARALLEL),-parallel $(PARALLEL))
