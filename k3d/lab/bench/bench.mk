# `make bench`, included by the top Makefile, whose GO, BUILD and TAGS it uses. Beside the program itself it builds two
# more of it, to be compared with: one with only the build tags that the
# engine insists on (webclient does not compile without serve), and one without any.

BENCH_FEW := ts_omit_serve,ts_omit_ssh,ts_omit_peerapiserver,ts_omit_c2n,ts_omit_webclient

.PHONY: bench
bench: build lab-tools $(BUILD)/bench/few-tags $(BUILD)/bench/untagged ## measure hook, attach, memory and throughput, next to a stock tailscaled (10 minutes)
	@$(BUILD)/bin/lab bench

# go build decides what is stale.
.PHONY: $(BUILD)/bench/few-tags $(BUILD)/bench/untagged
$(BUILD)/bench/few-tags: BENCH_TAGS := $(BENCH_FEW)
$(BUILD)/bench/untagged: BENCH_TAGS :=
$(BUILD)/bench/few-tags $(BUILD)/bench/untagged:
	@CGO_ENABLED=0 nice $(GO) build -tags "$(BENCH_TAGS)" -trimpath -buildvcs=false -ldflags "-s -w" -o $@ ./nri-plugin
