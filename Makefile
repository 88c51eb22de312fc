# tailscale-nri: what a new user runs is "make demo" and "make test".

# What this program never does is left out of tailscale.com. Some of it is left
# out because it must not be there: Serve, SSH, the PeerAPI server and C2N act
# in the daemon's namespaces, not in the pod's, and the engine refuses to start
# in a binary that has them. The rest saves 12 % of the binary and some 5 % of
# the memory.
OMIT := ace acme androidbin androiddns \
	appconnectors aws bird c2n captiveportal capture cli cliconndiag \
	clientmetrics clientupdate cloud colorable completion completion_scripts \
	conn25 connreject dbus debug debugeventbus debugportmapper desktop_sessions \
	dnsresolvecache doctor drive favorites flashappliance gro hujsonconf \
	identityfederation iptables kube linkspeed linuxdnsfight listenrawdisco \
	logtail netlog netstack networkmanager oauthkey osrouter outboundproxy \
	peerapiclient peerapiserver portlist portmapper posture qrcodes relayserver \
	remoteconfig resolved routecheck runtimemetrics sdnotify serve \
	serviceclientprefs ssh synology syslog syspolicy systray taildrop tap tpm \
	tundevstats unixsocketidentity wakeonlan webbrowser webclient
comma := ,
space := $(subst ,, )
TAGS := $(subst $(space),$(comma),$(strip $(addprefix ts_omit_,$(OMIT))))

# One toolchain for all modules, no older than what each go.mod asks for. It is
# fetched like any module; the go command of Debian, and of many images, takes
# none but its own unless it is told to.
export GOTOOLCHAIN := go1.27.4

GO      ?= go
BUILD   := $(CURDIR)/.build
BIN     := $(BUILD)/bin/tailscale-nri
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.DEFAULT_GOAL := help
include deploy/image.mk deploy/deploy.mk k3d/k3d.mk
include k3d/lab/tools.mk k3d/lab/kube/kube.mk k3d/lab/measure.mk .ci/lint.mk

.PHONY: help
help: ## show what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST) | sort

.PHONY: build
build: ## build tailscale-nri into .build/bin
	@CGO_ENABLED=0 nice $(GO) build -tags $(TAGS) -trimpath -buildvcs=false \
		-ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN) ./nri-plugin

# The plugin of kubectl is for users' machines.
KUBECTL_PLUGIN := kubectl-tailscale_nri
PLUGIN_SYSTEMS := $(foreach os,linux darwin windows,$(os)/amd64 $(os)/arm64)
build_plugin    = CGO_ENABLED=0 nice $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" \
	-o $1 ./nri-plugin/$(KUBECTL_PLUGIN)

.PHONY: kubectl-plugin
kubectl-plugin: ## build the plugin of kubectl, for kubectl tailscale-nri status, into .build/bin
	@$(call build_plugin,$(BUILD)/bin/$(KUBECTL_PLUGIN))

# A directory for each, since kubectl knows the plugin by its file's name.
.PHONY: kubectl-plugin-all $(PLUGIN_SYSTEMS:%=kubectl-plugin-%)
kubectl-plugin-all: $(PLUGIN_SYSTEMS:%=kubectl-plugin-%) ## build it for Linux, macOS and Windows, into .build/kubectl
$(PLUGIN_SYSTEMS:%=kubectl-plugin-%): kubectl-plugin-%:
	@GOOS=$(*D) GOARCH=$(*F) $(call build_plugin,$(BUILD)/kubectl/$(*D)-$(*F)/$(KUBECTL_PLUGIN)$(if $(filter windows,$(*D)),.exe))

.PHONY: demo
demo: build lab-tools ## show the main job for real: pods on a tailnet, on a containerd of its own (KEEP=1 leaves it up)
	@$(BUILD)/bin/lab demo

.PHONY: demo-down
demo-down: build lab-tools ## end the demo that KEEP=1 left up
	@$(BUILD)/bin/lab demo down

.PHONY: tags
tags: ## print the build tags, for go test -tags
	@echo $(TAGS)

# What a contributor runs all day: "make test" without the race detector, the
# fault table, a real Headscale, holders of a device that are stopped for a while,
# the manifests, the lab's own tests and those end to end. It needs root, Go, and
# Headscale for one test, which the first run builds.
PKG  ?= ./engine/... ./nri-plugin/...
SLOW := TestHeadscale|TestWorkloadPaused
.PHONY: unit
unit: $(if $(RUN),,$(LAB_HEADSCALE_BIN)) ## run the tests of engine, kernel and plugin, in five minutes (PKG=./engine RUN=TestName)
	nice $(GO) test -timeout 15m -tags $(TAGS) $(if $(RUN),-run '$(RUN)',-skip "$(UNRACED)|$(SLOW)") $(PKG)

# The race detector where goroutines of ours meet. The fault table starts over a
# thousand processes, which take twice as long under it; what they run, other
# tests run under it. The processes of the end-to-end tests are the ones that
# "make build" made. The lab's tests want a stock tailscale.com, since tsnet does
# not compile with the program's tags. Those on Kubernetes are make e2e's.
UNRACED := TestKilledAtEachStep
.PHONY: test
test: build lab-tools lab-clients lab-api lab-prom ## run the tests: unit, kernel, engine, plugin, manifests and end to end on containerd
	CGO_ENABLED=1 nice $(GO) test -race -timeout 30m -tags $(TAGS) -skip "$(UNRACED)" ./engine/... ./nri-plugin/...
	nice $(GO) test -timeout 30m -tags $(TAGS) -run "$(UNRACED)" ./engine
	nice $(GO) test -timeout 30m ./deploy/... $$($(GO) list ./k3d/... | grep -v /kube/e2e)

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BUILD)
