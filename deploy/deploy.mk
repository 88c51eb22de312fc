# Puts the program on a cluster, on any: give KUBE_CONTEXT and OVERLAY, and have the image on its nodes. By default it is
# that of k3d/k3d.mk. Included by the top Makefile. No target touches another context than KUBE_CONTEXT.

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

.PHONY: need-kubectl need-context
need-kubectl:
	@command -v kubectl >/dev/null || { echo "kubectl is missing; see https://kubernetes.io/docs/tasks/tools"; exit 1; }

need-context: need-kubectl
	@kubectl config get-contexts $(KUBE_CONTEXT) >/dev/null 2>&1 || { echo "kubectl knows no context $(KUBE_CONTEXT);" \
		"make k3d-up makes it, and for another cluster give KUBE_CONTEXT and OVERLAY"; exit 1; }

.PHONY: deploy
deploy: need-context ## apply OVERLAY (deploy/overlays/k3d) and the environment's credentials to KUBE_CONTEXT
	@deploy/secret.sh $(OVERLAY) $(KUBECTL)
	@name=$$(CLUSTER_NAME='$(CLUSTER_NAME)' K3D_CLUSTER='$(K3D_CLUSTER)' deploy/name.sh $(KUBECTL)) && $(RENDER) | $(KUBECTL) apply -f -
	@WAIT=$(WAIT) deploy/rollout.sh $(KUBECTL)
	@echo "deploy: ready; pods to try it with: $(KUBECTL) apply -f k3d/samples"

.PHONY: logs
logs: need-context ## follow the log of every node's agent
	@$(KUBECTL) logs $(AGENT_PODS) -f --prefix --tail 100 --max-log-requests 50

.PHONY: restart
restart: need-context ## restart every node's agent, as an update does
	@$(KUBECTL) rollout restart $(AGENTS)
	@WAIT=$(WAIT) deploy/rollout.sh $(KUBECTL)
