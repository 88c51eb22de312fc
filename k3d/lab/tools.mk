# What the lab runs: containerd, runc, the CNI plugins and a stock tailscaled, built from the versions pinned in
# k3d/lab/tools/go.mod. Included by the top Makefile; `make -f k3d/lab/tools.mk lab-tools` works alone as well.
# A binary is built when it is missing or older than tools/go.sum; cold, on two cores, all take about 5 minutes.

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

LAB_BINS  := $(LAB_BIN:%=$(LAB_BUILD)/bin/%) $(LAB_CNI:%=$(LAB_BUILD)/cni/%)
LAB_IMAGES := $(LAB_IMAGE:%=$(LAB_BUILD)/image/%)

# The package of each binary, as the tool lines of tools/go.mod have it.
lab_pkg = $(shell sed -n 's|^\t\([^ ]*/$(notdir $1)\)$$|\1|p' $(LAB_TOOLS)/go.mod)

.PHONY: lab-tools
lab-tools: lab-debian $(LAB_BINS) $(LAB_IMAGES) $(LAB_BUILD)/bin/lab ## build what the lab runs (containerd, runc, CNI, tailscaled)

# runc is cgo, and without seccomp it refuses the profile that a kubelet gives every sandbox.
$(LAB_BUILD)/bin/runc: $(LAB_TOOLS)/go.sum | lab-debian
	@echo "building $(notdir $@)"
	@cd $(LAB_TOOLS) && CGO_ENABLED=1 nice $(GO) build $(LAB_FLAGS) -tags seccomp -o $@ $(call lab_pkg,$@) && touch $@

$(filter-out %/runc,$(LAB_BINS)): $(LAB_TOOLS)/go.sum
	@echo "building $(notdir $@)"
	@cd $(LAB_TOOLS) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ $(call lab_pkg,$@) && touch $@

# go build decides what is stale among our own packages, so these are always asked for and seldom built.
.PHONY: $(LAB_IMAGES) $(LAB_BUILD)/bin/lab
$(LAB_BUILD)/bin/lab:
	@CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ ./k3d/lab/cmd/lab

$(LAB_IMAGES):
	@CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ ./k3d/lab/image/$(notdir $@)

# Debian packages: what runc's build needs, iproute2 and curl to look around,
# and slirp4netns for Config.Uplink.
.PHONY: lab-debian
lab-debian:
	@k3d/lab/tools/debian.sh gcc libc6-dev libseccomp-dev pkg-config iproute2 curl slirp4netns
