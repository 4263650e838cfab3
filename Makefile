# From nothing but python3 and make to a demo, the tests and the documentation; `make` lists the rules.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
UV := uv==0.13.8
TESTS ?=

# uv does not read pip's configuration: hand on where this machine's pip looks for packages, if it says so.
pip_setting = $(PY) -m pip config list 2>/dev/null | sed -n "s/^[a-z:]*\.$(1)='\(.*\)'$$/\1/p" | tail -n 1 | sed 's/\\n/ /g' | tr -s ' ' ','

define install
	@echo "Installing cryoscan ($(1)) into $(VENV); the first time takes a minute or more."
	@links="$${UV_FIND_LINKS:-$$($(call pip_setting,find-links))}"; index="$${UV_DEFAULT_INDEX:-$$($(call pip_setting,index-url))}"; \
	{ $(PY) -m uv --version >/dev/null 2>&1 && \
	  env UV_PYTHON_DOWNLOADS=never $${links:+UV_FIND_LINKS="$$links"} $${index:+UV_DEFAULT_INDEX="$$index"} \
	  $(PY) -m uv pip install -q -p $(PY) -c constraints.txt -e '$(2)'; } \
	|| { echo "uv is missing or did not manage; using pip, which is slower."; $(PY) -m pip install -q -c constraints.txt -e '$(2)'; }
	@touch $@
endef

.PHONY: help demo test lint docs screenshots benchmark clean

help:
	@echo "make demo       install what a user needs and run cryoscan on made-up data"
	@echo "make test       install what a developer needs and run the tests, two at a time (TESTS=path narrows them)"
	@echo "make lint       style, layers and types"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "make screenshots make the pictures of the viewer in docs/images"
	@echo "make benchmark  say how the benchmarks are run"
	@echo "make clean      remove everything that was built, but not $(VENV)"

demo: $(VENV)/.run
	@$(VENV)/bin/cryoscan demo

test: $(VENV)/.dev
	@$(PY) -m pytest -q -n 2 --dist loadfile $(TESTS)

lint: $(VENV)/.dev
	@echo "ruff"; $(VENV)/bin/ruff check -q . && $(VENV)/bin/ruff format -q --check .
	@echo "import-linter"; $(VENV)/bin/lint-imports --no-cache --no-logo > $(VENV)/.layers.log 2>&1 || { cat $(VENV)/.layers.log; exit 1; }
	@echo "mypy"; $(VENV)/bin/mypy --no-error-summary

docs: $(VENV)/.dev
	@echo "sphinx"; $(VENV)/bin/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

screenshots: $(VENV)/.dev
	@if [ -n "$$DISPLAY" ]; then $(PY) docs/make_viewer_images.py; \
	else xvfb-run -a -s "-screen 0 1280x800x24" $(PY) docs/make_viewer_images.py; fi

benchmark: $(VENV)/.run
	@echo "Each file in configs/benchmark/ is one benchmark:"
	@for config in configs/benchmark/*.yaml; do echo "  $(VENV)/bin/cryoscan benchmark $$config"; done
	@echo "They need real structures or maps: name their folder with --data FOLDER."

clean:
	@echo "Removing caches, built documentation and demo output."
	@rm -rf build dist docs/_build docs/reference/generated cryoscan-demo
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	@find cryoscan napari_plugin tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "cryoscan needs Python 3.11 or newer, $(PYTHON) is older; say make PYTHON=python3.12"; exit 1; }
	@echo "Creating $(VENV)."
	@$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu the package python3-venv is needed."; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check $(UV) 2>/dev/null || echo "uv cannot be installed here; pip will do."
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,to use it,.)

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,to develop it,.[dev])
	@touch $(VENV)/.run
