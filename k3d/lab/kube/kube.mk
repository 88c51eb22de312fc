# The lab's Kubernetes: built from the versions pinned in k3d/lab/tools/kube (Kubernetes itself, with nothing next to it
# that could raise a version of its dependencies) and k3d/lab/tools/addons (etcd, CoreDNS, Helm). Included by the top
# Makefile. Cold, on two idle cores, all take about 10 minutes.

KUBE_TOOLS   := $(CURDIR)/k3d/lab/tools/kube
ADDON_TOOLS  := $(CURDIR)/k3d/lab/tools/addons
KUBE_VERSION := $(shell sed -n 's|^\tk8s.io/kubernetes \(v[0-9.]*\).*|\1|p' $(KUBE_TOOLS)/go.mod)
KUBE_MINOR   := $(word 2,$(subst ., ,$(KUBE_VERSION)))

# Without these a server calls itself v0.0.0, and refuses kubelets as too new.
KUBE_LDFLAGS := -s -w -X k8s.io/client-go/pkg/version.gitVersion=$(KUBE_VERSION) \
	-X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) \
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(KUBE_MINOR)

KUBE_BINS  := $(addprefix $(LAB_BUILD)/bin/,kubectl kube-apiserver kubelet kube-controller-manager kube-scheduler kube-proxy)
ADDON_BINS := $(addprefix $(LAB_BUILD)/bin/,etcd coredns helm)

.PHONY: lab-kube
lab-kube: lab-tools lab-kube-debian $(KUBE_BINS) $(ADDON_BINS) ## build the lab's Kubernetes (etcd, kube-*, kubelet, kubectl, CoreDNS, Helm)

$(KUBE_BINS): $(KUBE_TOOLS)/go.sum
	@echo "building $(notdir $@)"
	@cd $(KUBE_TOOLS) && CGO_ENABLED=0 nice $(GO) build -trimpath -buildvcs=false -ldflags "$(KUBE_LDFLAGS)" -o $@ \
		k8s.io/kubernetes/cmd/$(notdir $@) && touch $@

# The package of each; etcd's name is that of a version.
addon_pkg = $(if $(filter etcd,$1),go.etcd.io/etcd/server/v3,$(if $(filter helm,$1),helm.sh/helm/v4/cmd/helm,./$1))

$(ADDON_BINS): $(ADDON_TOOLS)/go.sum
	@echo "building $(notdir $@)"
	@cd $(ADDON_TOOLS) && CGO_ENABLED=0 nice $(GO) build $(LAB_FLAGS) -o $@ $(call addon_pkg,$(notdir $@)) && touch $@

$(LAB_BUILD)/bin/coredns: $(ADDON_TOOLS)/coredns/main.go

# What the tests of the manifests render with.
.PHONY: lab-clients
lab-clients: $(LAB_BUILD)/bin/kubectl $(LAB_BUILD)/bin/helm

# What the tests of nri-plugin/internal/kubestate talk to.
.PHONY: lab-api
lab-api: $(LAB_BUILD)/bin/etcd $(LAB_BUILD)/bin/kube-apiserver

# What kube-proxy calls; after the others, since apt-get takes one at a time (make -j).
.PHONY: lab-kube-debian
lab-kube-debian: lab-debian
	@k3d/lab/tools/debian.sh iptables nftables kmod

# The image that the manifests name, of this machine alone: nothing else is to run it here. Not where make image writes,
# which would take the other platforms' away.
.PHONY: lab-image
lab-image:
	@$(MAKE) --no-print-directory image IMAGE=tailscale-nri:dev IMAGE_ARCHS=$$($(GO) env GOARCH) IMAGE_OUT=$(LAB_BUILD)/lab-image

# With its output, which has the gap of a roll.
.PHONY: e2e
e2e: lab-kube lab-image kubectl-plugin ## run the tests on Kubernetes: the manifests and the image, on two nodes of its own (10 minutes)
	nice $(GO) test -v -count 1 -timeout 45m ./k3d/lab/kube/e2e

.PHONY: e2e-down
e2e-down: lab-tools ## end the cluster of tests that were killed, and remove all that it made
	@LAB_NAME=tsnri-kube LAB_DIR=/run/tsnri-kube $(LAB_BUILD)/bin/lab cluster down

.PHONY: cluster
cluster: lab-kube lab-image ## bring up a real Kubernetes cluster of two nodes with a tailnet and the plugin, without Docker
	@$(LAB_BUILD)/bin/lab cluster up

.PHONY: cluster-starts
cluster-starts: lab-tools ## measure how long pods take to start on that cluster, annotated and not, in turns (PODS=50)
	@$(LAB_BUILD)/bin/lab cluster starts -pods $(or $(PODS),50)

.PHONY: cluster-down
cluster-down: lab-tools ## end the cluster and remove all that it made
	@$(LAB_BUILD)/bin/lab cluster down
