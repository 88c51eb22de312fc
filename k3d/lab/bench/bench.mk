# `make bench`, included by the top Makefile, whose GO, BUILD, BIN and TAGS it uses. BENCH holds more flags of
# `lab bench`, such as BENCH="-only memory -before /path/to/another/tailscale-nri".

BENCH ?=
BENCH_TOOLS := $(CURDIR)/k3d/lab/tools/bench

.PHONY: bench
bench: build lab-tools bench-debian $(BUILD)/bin/benchstat ## measure attach, traffic, memory and CPU time, next to a stock tailscaled (40 minutes)
	@$(BUILD)/bin/lab bench $(BENCH)
	@$(BUILD)/bin/benchstat -col /of $(BUILD)/bench.txt

.PHONY: bench-debian
bench-debian: | lab-debian
	@k3d/lab/tools/debian.sh iperf3

$(BUILD)/bin/benchstat: $(BENCH_TOOLS)/go.sum
	@echo "building $(notdir $@)"
	@cd $(BENCH_TOOLS) && CGO_ENABLED=0 nice $(GO) build -trimpath -buildvcs=false -ldflags "-s -w" -o $@ \
		golang.org/x/perf/cmd/benchstat && touch $@

.PHONY: profile
profile: ## build a tailscale-nri that serves profiles on a socket (k3d/lab/bench/doc.go)
	@CGO_ENABLED=0 nice $(GO) build -tags $(TAGS),profile -trimpath -buildvcs=false \
		-ldflags "-s -w -X main.version=$(VERSION)-profile" -o $(BUILD)/bench/profile ./nri-plugin
