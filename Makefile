# Every target sets up what it needs: only Python 3.11 to 3.14, make and a package registry are assumed.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := .venv/bin
# Tests and benches start hundreds of processes: without bytecode each of them compiles what it imports, torch for 3 s.
unexport PYTHONDONTWRITEBYTECODE
SYNC := $(UV) sync --frozen --inexact --python $(PYTHON)

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

.PHONY: demo
demo: env-demo  ## train three small networks, serve their ensemble under an SLO, load it, draw what happened
	$(RUN)/python examples/digits/demo.py

.PHONY: test
test: env-test  ## all tests
	$(RUN)/pytest $(TEST_ARGS)

# build/compiled comes before the sources on PYTHONPATH: what images and benches run.
.PHONY: compiled
compiled: env-demo  ## compile what every request passes through into build/compiled; needs a C compiler
	TESSERA_COMPILE=$(CURDIR)/$(RUN)/python $(UV) pip install --quiet --python $(RUN)/python --no-deps \
	  --reinstall-package tessera --target build/compiled .

# The suites that ask a whole server, and real clients; a compiled class takes no test double for its neighbours.
.PHONY: test-compiled
test-compiled: env-test compiled  ## the tests of front ends, serving and faults on the compiled modules
	PYTHONPATH=$(CURDIR)/build/compiled $(RUN)/pytest $(or $(TEST_ARGS),tests/protocol tests/serving tests/faults)

.PHONY: check
check: env-check  ## format, lint, types, layers
	$(RUN)/ruff format --check
	$(RUN)/ruff check
	$(RUN)/mypy
	$(RUN)/lint-imports

# Debian 12 and root get all of it; elsewhere what cannot be installed is left out and named.
.PHONY: bench-peers
bench-peers: env-demo  ## install the servers and load generators that bench-dataplane measures Tessera beside
	$(RUN)/python bench/peers/install.py

# BENCH_ARGS are further options, such as `--only identity,cnn` or `--peers triton,mosec`.
.PHONY: bench-dataplane
bench-dataplane: compiled  ## the server beside its peers and an in-process loop; QUICK=1 for a smoke run
	PYTHONPATH=$(CURDIR)/build/compiled $(RUN)/python bench/dataplane/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)

# For a machine with torch and a GPU but without a registry; bench/bundle.py says how it is used there.
.PHONY: bench-gpu-bundle
bench-gpu-bundle: env-demo  ## pack what bench-dataplane's GPU rows need; BUNDLE_PYTHON (3.12) is that machine's
	$(RUN)/python bench/bundle.py --uv $(UV) --python $(or $(BUNDLE_PYTHON),3.12)

.PHONY: bench-soak
bench-soak: compiled  ## steady load for MINUTES (20); fails if memory grows or anything leaks; QUICK=1
	PYTHONPATH=$(CURDIR)/build/compiled $(RUN)/python bench/soak.py $(if $(QUICK),--quick) $(if $(MINUTES),--minutes $(MINUTES)) $(BENCH_ARGS)

# PARVAGPU_DATA names the folder with the ParvaGPU profiles; without it the cases that need them are left out.
.PHONY: bench-planner
bench-planner: env-bench  ## the planner beside other rules, bounds and brute force; QUICK=1 for a smoke run
	$(RUN)/python bench/planner/main.py $(if $(QUICK),--quick)

.PHONY: bench-simulate
bench-simulate: compiled  ## the simulator beside the real server, and its speed; QUICK=1 for a smoke run
	PYTHONPATH=$(CURDIR)/build/compiled $(RUN)/python bench/simulate/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)

.PHONY: bench-fleet
bench-fleet: env-bench  ## a year of 10,000 GPUs, simulated: policies for capacity beside each other; QUICK=1 for a smoke run
	$(RUN)/python bench/fleet/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)

# BENCH_ARGS are further options, such as `--only steps` or `--rounds 1`.
.PHONY: bench-control
bench-control: env-bench  ## policies for batches and instances beside each other, simulated; QUICK=1 for a smoke run
	$(RUN)/python bench/control/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)

# BENCH_ARGS are further options, such as `--only wide` or `--device cuda`.
.PHONY: bench-control-real
bench-control-real: compiled  ## the same policies on real servers of this machine, beside every static setting; QUICK=1
	PYTHONPATH=$(CURDIR)/build/compiled $(RUN)/python bench/control_real/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)

.PHONY: bench-preprocess
bench-preprocess: compiled  ## images decoded in the server beside its parts alone and plain servers; QUICK=1 for a smoke run
	PYTHONPATH=$(CURDIR)/build/compiled $(RUN)/python bench/preprocess/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)
	$(RUN)/python bench/preprocess/gpu_decode.py $(if $(QUICK),--quick)
	$(RUN)/python bench/preprocess/simulated.py $(if $(QUICK),--quick)

.PHONY: bench-tuning
bench-tuning: env-tuning  ## what tuning gains, at which share it has to be done, and how long it takes; QUICK=1 for a smoke run
	$(RUN)/python bench/tuning/main.py $(if $(QUICK),--quick) $(BENCH_ARGS)

# On kind where Docker runs, else on a cluster of two nodes that it starts here: that needs Linux, root, Go 1.24 or newer
# and apt, installs containerd, runc, CNI plugins, iptables, conntrack, socat, buildah and mmdebstrap, and builds
# Kubernetes, CoreDNS and Helm from their Go modules into ~/.cache (the first run: some 15 minutes, 12 GB).
# E2E_ARGS are further options of pytest, such as `-k ensemble` or `--last-failed`.
.PHONY: e2e
e2e: env-e2e  ## the whole system on a real Kubernetes; TESSERA_E2E=kind or native picks which
	$(RUN)/pytest e2e --ignore e2e/scale --ignore e2e/autoscaling $(patsubst %,--ignore %,$(CUTTING)) \
	  --override-ini pythonpath=. $(E2E_ARGS)

# What takes minutes on nodes that a stand-in of NVIDIA's library gives GPUs.
CUTTING := e2e/test_recutting.py e2e/test_mig_manager_cuts.py e2e/test_measuring_cuts.py e2e/test_gpu_health.py
.PHONY: e2e-gpus
e2e-gpus: env-e2e  ## GPUs cut anew under load, by Tessera and NVIDIA's MIG manager, and left when they ail
	$(RUN)/pytest $(CUTTING) --override-ini pythonpath=. -s $(E2E_ARGS)

.PHONY: e2e-scale
e2e-scale: env-e2e  ## the operator beside 300 simulated nodes of 8 GPUs and 300 services
	$(RUN)/pytest e2e/scale --override-ini pythonpath=. -s

.PHONY: e2e-autoscaling
e2e-autoscaling: env-e2e  ## pools that grow and shrink under the real Karpenter, on simulated nodes; a service that KEDA scales
	$(RUN)/pytest e2e/autoscaling --override-ini pythonpath=. -s $(E2E_ARGS)

.PHONY: format
format: env-check  ## rewrite the sources as `make check` wants them
	$(RUN)/ruff check --fix
	$(RUN)/ruff format

.PHONY: proto
proto: env-test  ## regenerate the gRPC descriptors from oip.proto and device_plugin.proto
	$(RUN)/python -m grpc_tools.protoc --include_imports \
	  -I runtime/tessera_runtime/protocol --descriptor_set_out=runtime/tessera_runtime/protocol/oip.binpb oip.proto
	$(RUN)/python -m grpc_tools.protoc -I runtime/tessera_runtime/partitioner \
	  --descriptor_set_out=runtime/tessera_runtime/partitioner/device_plugin.binpb device_plugin.proto

# The environments share .venv and only add to it. `check` stays without torch (5 GB).
.PHONY: env-check env-test env-demo env-bench env-e2e
env-check: $(UV)
	$(SYNC) --extra serve --group check
env-test: $(UV)
	$(SYNC) --extra runtime --extra onnx --extra openvino --extra s3 --extra gs --extra hf --extra solver --extra operator --group test --group demo
env-bench: $(UV)
	$(SYNC) --extra solver --group bench
env-e2e: $(UV)
	@command -v go >/dev/null || { echo "e2e: no go in PATH; install Go 1.24 or newer from https://go.dev/dl"; exit 1; }
	$(SYNC) --extra operator --extra kubectl --extra onnx --group e2e
env-tuning: $(UV)
	$(SYNC) --extra runtime --extra onnx --extra openvino --group demo
env-demo: $(UV)
	$(SYNC) --extra runtime --extra onnx --group demo

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

.PHONY: clean
clean:  ## remove environments and caches
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .bench demo-out
