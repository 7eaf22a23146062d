# make book   set up and build the site into _build/html      make lab    open JupyterLab on the chapters
# make test   set up, lint, run tests, doctests and notebooks  make paper  run the chapters at the paper's own scale
# make site-test   test the built pages in headless Chromium   make clean  remove what was built
# make repository URL=https://github.com/OWNER/NAME            name the repository; the buttons then appear
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: book test site-test lab paper repository clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NOTEBOOKS := $(sort $(wildcard book/*.ipynb))
HASH := $(shell command -v sha256sum || echo shasum -a 256)

export VCLIB_STATIC := 1
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONDONTWRITEBYTECODE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A virtual environment does not survive a move: .venv/.home says which folder it was made for.
ifneq ($(shell cat .venv/.home 2>/dev/null),$(CURDIR))
$(READY): .moved
.PHONY: .moved
.moved:
endif

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "The book needs Python 3.11 or later, and $(PYTHON) is older or missing; try \`make $(MAKECMDGOALS) PYTHON=python3.11\`." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing; on Debian or Ubuntu install the package python3-venv." >&2; exit 1; }
	@if [ "$$(cat .venv/.home 2>/dev/null)" != "$(CURDIR)" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Creating .venv ..."; rm -rf .venv; $(PYTHON) -m venv .venv; echo "$(CURDIR)" > .venv/.home; fi
	@echo "Installing the environment (about a minute the first time) ..."
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# The execution cache knows a notebook only by its source. Whatever else decides its outputs is in this key.
book: export VCLIB_SCALE ?= laptop
book: $(READY)
	@mkdir -p _build
	@key=$$({ find vclib book/results -type f ! -name '*.pyc' -print0 2>/dev/null | LC_ALL=C sort -z | xargs -0 $(HASH); \
	  $(HASH) requirements.txt; echo "$$VCLIB_SCALE" "$${VCLIB_DATA:-}" "$${VCLIB_CACHE:-}" "$${VCLIB_OFFLINE:-}"; \
	  ls -d /usr/share/datasets/* /usr/local/share/datasets/* 2>/dev/null || true; } | $(HASH)); \
	if [ "$$key" != "$$(cat _build/.cache-key 2>/dev/null)" ]; then rm -rf _build/.jupyter_cache; fi; \
	echo "$$key" > _build/.cache-key
	@rm -rf _build/html
	$(BIN)/jupyter-book build book --config _config.yml --toc "$(CURDIR)/_toc.yml" --path-output . -W -n --keep-going --all
	@echo "The book is in _build/html; open _build/html/index.html."

test: export VCLIB_SCALE ?= smoke
test: export OMP_NUM_THREADS ?= 1
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	  tests vclib $(NOTEBOOKS)

site-test: export VCLIB_SITE_REQUIRED := 1
site-test: book
	$(BIN)/python -m pytest -q -n 2 tests/site

lab: $(READY)
	cd book && env -u VCLIB_STATIC ../$(BIN)/jupyter lab

paper: export VCLIB_SCALE := paper
paper: $(READY)
	@mkdir -p _build/paper
	$(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 --output-dir _build/paper $(NOTEBOOKS)

repository: $(READY)
	@$(BIN)/python tools/repository.py "$(URL)"

clean:
	rm -rf _build build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
