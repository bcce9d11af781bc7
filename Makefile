# make repro   regenerate the suite of the scale in force, from raw documents to reports/index.html
# make test    run the tests; make test-slow those that kill, resume and orchestrate; make test-readme the README's commands
# Both install what they need into .venv first; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install repro test test-slow test-readme lint clean

help:
	@sed -n '1,3s/^# //p' Makefile

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py
	@touch $@

repro: $(STAMP)
	@tools/repro.sh

test: $(STAMP)
	@python -m pytest -m "not slow"

test-slow: $(STAMP)
	@python -m pytest -m slow --ignore tests/test_readme.py

test-readme: $(STAMP)
	@python -m pytest -m slow tests/test_readme.py

lint: $(STAMP)
	@ruff check . && ruff format --check . && mypy

clean:
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache
