# A k3d cluster to try the program on; included by the top Makefile. deploy, logs and restart work on any cluster:
# give KUBE_CONTEXT and OVERLAY, and have the image on its nodes. No target touches another context than KUBE_CONTEXT.

K3D_CLUSTER  ?= $(shell sed -n 's/^  name: //p' k3d/cluster.yaml)
K3D_ARCH     ?= $(shell GOTOOLCHAIN=$(GOTOOLCHAIN) $(GO) env GOARCH)
# Not where make image writes: an image of one platform there would take the place of the one for all.
K3D_OUT      := $(BUILD)/k3d-image
KUBE_CONTEXT ?= k3d-$(K3D_CLUSTER)
OVERLAY      ?= deploy/overlays/k3d

KUBECTL    = kubectl --context $(KUBE_CONTEXT)
AGENTS     = -n tailscale-nri daemonset/tailscale-nri
AGENT_PODS = -n tailscale-nri -l app.kubernetes.io/name=tailscale-nri

# The image of the manifests is the one that make image makes, whatever IMAGE names it. An overlay that leaves the
# cluster's name open gets CLUSTER_NAME, or one with this machine's name in it.
RENDER = $(KUBECTL) kustomize $(OVERLAY) | sed -e 's|image: tailscale-nri:dev$$|image: $(IMAGE)|' \
	-e "s|CLUSTER_NAME: REPLACE-ME$$|CLUSTER_NAME: $$name|"

# Seconds that deploy and restart wait for all nodes.
WAIT ?= 180

.PHONY: need-k3d need-kubectl need-context
need-k3d:
	@command -v k3d >/dev/null || { echo "k3d is missing; see https://k3d.io/stable/#installation"; exit 1; }

need-kubectl:
	@command -v kubectl >/dev/null || { echo "kubectl is missing; see https://kubernetes.io/docs/tasks/tools"; exit 1; }

need-context: need-kubectl
	@kubectl config get-contexts $(KUBE_CONTEXT) >/dev/null 2>&1 || { echo "kubectl knows no context $(KUBE_CONTEXT);" \
		"make k3d-up makes it, and for another cluster give KUBE_CONTEXT and OVERLAY"; exit 1; }

.PHONY: k3d-up
k3d-up: need-k3d ## create a k3d cluster with NRI on (k3d/cluster.yaml)
	@PWD='$(CURDIR)' k3d cluster create $(K3D_CLUSTER) --config k3d/cluster.yaml

.PHONY: k3d-load
k3d-load: need-k3d ## make the image for K3D_ARCH alone and load it into the k3d cluster
	@$(MAKE) --no-print-directory image IMAGE_ARCHS=$(K3D_ARCH) IMAGE_OUT=$(K3D_OUT)
	@k3d image import --cluster $(K3D_CLUSTER) $(K3D_OUT)/tailscale-nri-$(K3D_ARCH).tar

.PHONY: deploy
deploy: need-context ## apply OVERLAY (deploy/overlays/k3d) and the environment's credentials to KUBE_CONTEXT
	@k3d/secret.sh $(OVERLAY) $(KUBECTL)
	@name=$$(CLUSTER_NAME='$(CLUSTER_NAME)' K3D_CLUSTER='$(K3D_CLUSTER)' k3d/name.sh $(KUBECTL)) && $(RENDER) | $(KUBECTL) apply -f -
	@WAIT=$(WAIT) k3d/rollout.sh $(KUBECTL)
	@echo "deploy: ready; pods to try it with: $(KUBECTL) apply -f k3d/samples"

.PHONY: logs
logs: need-context ## follow the log of every node's agent
	@$(KUBECTL) logs $(AGENT_PODS) -f --prefix --tail 100 --max-log-requests 50

.PHONY: restart
restart: need-context ## start every node's agent anew, as an update does
	@$(KUBECTL) rollout restart $(AGENTS)
	@WAIT=$(WAIT) k3d/rollout.sh $(KUBECTL)

.PHONY: k3d-down
k3d-down: need-k3d need-kubectl ## let the samples leave the tailnet and delete the k3d cluster (FORCE=1: do not wait)
	@[ -n "$(FORCE)" ] || k3d/leave.sh $(KUBECTL) || { echo "k3d-down: FORCE=1 deletes the cluster all the same"; exit 1; }
	@k3d cluster delete $(K3D_CLUSTER)
