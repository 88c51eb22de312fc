# The container image; included by the top Makefile, whose GO, BUILD and VERSION it uses. No Docker engine is needed and
# no base image is pulled: deploy/image packs the binaries that "make build" makes for each platform.

IMAGE       ?= tailscale-nri:dev
IMAGE_ARCHS ?= amd64 arm64
IMAGE_OUT   := $(BUILD)/image-out

# The date of everything in the image, so that one commit gives one digest.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: image
image: ## write the container image (IMAGE=tailscale-nri:dev) for amd64 and arm64 to .build/image-out
	@for arch in $(IMAGE_ARCHS); do \
		GOOS=linux GOARCH=$$arch $(MAKE) --no-print-directory build BIN=$(IMAGE_OUT)/bin/$$arch/tailscale-nri || exit 1; \
	done
	@nice $(GO) run ./deploy/image -out $(IMAGE_OUT) -ref $(IMAGE) -version $(VERSION) -created $(SOURCE_DATE_EPOCH) \
		-revision "$$(git rev-parse HEAD 2>/dev/null)" $(IMAGE_ARCHS:%=$(IMAGE_OUT)/bin/%/tailscale-nri)
