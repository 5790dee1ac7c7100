# The commands that CI runs, by short names. PYTHON=.venv/bin/python make test
PYTHON ?= python
WEIGHTS ?= hcast_small.emoji_art

.PHONY: install test test-all format lint types docs dist bench

install:  ## everything but the extra `recipes`, editable, with the versions of .ci/constraints.txt
	PIP_CONSTRAINT=.ci/constraints.txt $(PYTHON) -m pip install -e '.[all]'

test:  ## the fast tests
	$(PYTHON) -m pytest -q -m "not slow"

test-all:  ## every test
	$(PYTHON) -m pytest -q

format:  ## rewrite the layout of the code
	$(PYTHON) -m ruff format .

lint:  ## layout and lint, as CI checks them
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:  ## types of the core
	$(PYTHON) -m mypy

docs:  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

dist:  ## the sdist and the wheel for PyPI, into dist/
	PYTHON=$(PYTHON) .ci/dist

bench:  ## one measured page: make bench PAGE=decoding DATA=emoji.parquet; without PAGE, the list of pages
ifdef PAGE
	$(PYTHON) benchmarks/$(PAGE).py $(if $(DATA),--model $(WEIGHTS) --data $(DATA)) $(OPTIONS)
else
	@for file in benchmarks/[!_]*.py; do echo "$$(basename $$file .py): $$(head -n 1 $$file | tr -d '"')"; done
endif
