# What the lab runs: containerd, runc, the CNI plugins and a stock tailscaled, built from the versions pinned in
# k3d/lab/tools/go.mod, a second stock tailscaled of the engine's own version (k3d/lab/tools/peer), and Headscale
# (k3d/lab/tools/headscale). Included by the top Makefile; `make -f k3d/lab/tools.mk lab-tools` works alone as well.
# A binary is built when it is missing or older than tools/go.sum; cold, on two cores, all take about 8 minutes.

# Alone each module is built with the toolchain that it asks for; the top Makefile names one for all.
GOTOOLCHAIN ?= auto
export GOTOOLCHAIN

GO        ?= go
LAB_BUILD ?= $(CURDIR)/.build
LAB_TOOLS := $(CURDIR)/k3d/lab/tools
LAB_FLAGS := -trimpath -buildvcs=false -ldflags "-s -w"

LAB_BIN   := containerd containerd-shim-runc-v2 ctr runc tailscale tailscaled
LAB_CNI   := bridge loopback host-local ptp portmap
LAB_IMAGE := pause labtool

# The stock tailscaled of the version that the engine has, from a module of its own: the go.mod of the older one cannot
# name both. Without gro's tag it does not compile, since the gVisor that it asks for is not to be had; without ssh's its
# SSH library is missing. What is left out are the userspace network stack and SSH, which kernel mode does not use.
LAB_PEER      := $(CURDIR)/k3d/lab/tools/peer
LAB_PEER_TAGS := ts_omit_gro,ts_omit_netstack,ts_omit_ssh
LAB_PEER_BINS := $(LAB_BUILD)/bin/tailscale-new $(LAB_BUILD)/bin/tailscaled-new

# Headscale, from a module of its own too: it asks for a tailscale.com that is neither's.
LAB_HEADSCALE     := $(CURDIR)/k3d/lab/tools/headscale
LAB_HEADSCALE_BIN := $(LAB_BUILD)/bin/headscale

# promtool, which tests the alerts of deploy/monitoring. Without the services that Prometheus finds its targets in, it is
# a third of the code; a minute and a half on two cores.
LAB_PROM     := $(CURDIR)/k3d/lab/tools/prom
LAB_PROM_BIN := $(LAB_BUILD)/bin/promtool

LAB_BINS  := $(LAB_BIN:%=$(LAB_BUILD)/bin/%) $(LAB_CNI:%=$(LAB_BUILD)/cni/%)
LAB_IMAGES := $(LAB_IMAGE:%=$(LAB_BUILD)/image/%)

# The package of each binary, as the tool lines of tools/go.mod have it.
lab_pkg = $(shell sed -n 's|^\t\([^ ]*/$(notdir $1)\)$$|\1|p' $(LAB_TOOLS)/go.mod)

.PHONY: lab-tools
lab-tools: lab-debian $(LAB_BINS) $(LAB_PEER_BINS) $(LAB_HEADSCALE_BIN) $(LAB_IMAGES) $(LAB_BUILD)/bin/lab ## build what the lab runs (containerd, runc, CNI, tailscaled, Headscale)

# runc is cgo, and without seccomp it refuses the profile that a kubelet gives every sandbox.
$(LAB_BUILD)/bin/runc: $(LAB_TOOLS)/go.sum | lab-debian
	@echo "building $(notdir $@)"
	@cd $(LAB_TOOLS) && CGO_ENABLED=1 nice $(GO) build $(LAB_FLAGS) -tags seccomp -o $@ $(call lab_pkg,$@) && touch $@

$(filter-out %/runc,$(LAB_BINS)): $(LAB_TOOLS)/go.sum
	@echo "building $(notdir $@)"
	@cd $(LAB_TOOLS) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ $(call lab_pkg,$@) && touch $@

$(LAB_PEER_BINS): $(LAB_PEER)/go.sum
	@echo "building $(notdir $@)"
	@cd $(LAB_PEER) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -tags $(LAB_PEER_TAGS) -o $@ \
		tailscale.com/cmd/$(patsubst %-new,%,$(notdir $@)) && touch $@

# Its SQLite is pure Go.
$(LAB_HEADSCALE_BIN): $(LAB_HEADSCALE)/go.sum
	@echo "building $(notdir $@)"
	@cd $(LAB_HEADSCALE) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ github.com/juanfont/headscale/cmd/headscale && touch $@

.PHONY: lab-prom
lab-prom: $(LAB_PROM_BIN)
$(LAB_PROM_BIN): $(LAB_PROM)/go.sum
	@echo "building $(notdir $@)"
	@cd $(LAB_PROM) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -tags remove_all_sd -o $@ \
		github.com/prometheus/prometheus/cmd/promtool && touch $@

# go build decides what is stale among our own packages, so these are always asked for and seldom built.
.PHONY: $(LAB_IMAGES) $(LAB_BUILD)/bin/lab
$(LAB_BUILD)/bin/lab:
	@CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ ./k3d/lab/cmd/lab

$(LAB_IMAGES):
	@CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ ./k3d/lab/image/$(notdir $@)

# Debian packages: what runc's build needs, iproute2 and curl to look around, iperf3 for traffic, and slirp4netns for
# Config.Uplink.
.PHONY: lab-debian
lab-debian:
	@k3d/lab/tools/debian.sh gcc libc6-dev libseccomp-dev pkg-config iproute2 curl iperf3 slirp4netns
