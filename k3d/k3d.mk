# A k3d cluster to try the program on, with the targets of deploy/deploy.mk; included by the top Makefile.

K3D_CLUSTER ?= $(shell sed -n 's/^  name: //p' k3d/cluster.yaml)
K3D_ARCH    ?= $(shell GOTOOLCHAIN=$(GOTOOLCHAIN) $(GO) env GOARCH)
# Not where make image writes: an image of one platform there would take the place of the one for all.
K3D_OUT     := $(BUILD)/k3d-image

.PHONY: need-k3d
need-k3d:
	@command -v k3d >/dev/null || { echo "k3d is missing; see https://k3d.io/stable/#installation"; exit 1; }

.PHONY: k3d-up
k3d-up: need-k3d ## create a k3d cluster with NRI on (k3d/cluster.yaml)
	@PWD='$(CURDIR)' k3d cluster create $(K3D_CLUSTER) --config k3d/cluster.yaml

.PHONY: k3d-load
k3d-load: need-k3d ## make the image for K3D_ARCH alone and load it into the k3d cluster
	@$(MAKE) --no-print-directory image IMAGE_ARCHS=$(K3D_ARCH) IMAGE_OUT=$(K3D_OUT)
	@k3d image import --cluster $(K3D_CLUSTER) $(K3D_OUT)/tailscale-nri-$(K3D_ARCH).tar

.PHONY: k3d-down
k3d-down: need-k3d need-kubectl ## let the samples leave the tailnet and delete the k3d cluster (FORCE=1: do not wait)
	@[ -n "$(FORCE)" ] || k3d/leave.sh $(KUBECTL) || { echo "k3d-down: FORCE=1 deletes the cluster all the same"; exit 1; }
	@k3d cluster delete $(K3D_CLUSTER)
