# `make soak`, included by the top Makefile. CYCLES, SEED and PARALLEL are passed on if they are set.

.PHONY: soak
soak: build lab-tools ## have pods come and go while everything around them fails, and look for leaks (CYCLES=1000 SEED=1 PARALLEL=8)
	@$(BUILD)/bin/lab soak $(if $(CYCLES),-cycles $(CYCLES)) $(if $(SEED),-seed $(SEED)) $(if $(PARALLEL),-parallel $(PARALLEL))
