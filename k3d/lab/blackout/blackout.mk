# `make blackout`, included by the top Makefile, whose BUILD it uses. ROUNDS is for one pod and, if given, for many.

.PHONY: blackout
blackout: build lab-tools ## measure the gaps of traffic when things restart, next to stock tailscaleds: blackout.json (30 minutes; PODS=50 ROUNDS=5)
	@$(BUILD)/bin/lab blackout $(if $(PODS),-pods $(PODS)) $(if $(ROUNDS),-rounds $(ROUNDS)) -json $(CURDIR)/blackout.json
