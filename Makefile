# `make migrate` and `make test` set up everything they need themselves: see README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
READY := $(VENV)/.ready
NEWEST := .venv-newest
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 2)')# two more, because many tests wait
PYTEST = $(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal

# For developers only: without it, a missing SECRET_KEY is an error. A deploy calls manage.py itself.
export DEBUG ?= 1

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The lock names every package there is, so pip need not look for more: an older one takes coverage[toml] for another
# package than coverage and then wants its newest release.
$(READY): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Error: $$($(PYTHON) --version) is too old: Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Installing the pinned packages into $(VENV) (once) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements/dev.txt
	@touch $@

# The pinned packages, but for Django: the newest in place of the LTS.
$(NEWEST)/.ready: requirements/dev.txt requirements/newest.txt
	@python=$$(.ci/newer-python $(PYTHON)) && echo "Installing the pinned packages and the newest Django into $(NEWEST) (once) …" && \
		$$python -m venv --clear $(NEWEST)
	@for pinned in $^; do $(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement $$pinned || exit; done
	@touch $@

install: $(READY) ## only set up the packages

migrate: $(READY) ## migrate the database in DATABASE_URL, or the embedded one
	@$(BIN)/python manage.py migrate

test: $(READY) ## run the tests on the embedded PostgreSQL 18, or on DATABASE_URL, but for the slow ones and those that install from PyPI
	@$(PYTEST) -m "not slow and not guests and not django_suite"

test-all: $(READY) ## run all tests there
	@$(PYTEST) -m "not django_suite"

test-server: $(READY) ## run only what depends on the server
	@$(PYTEST) -m "not once and not slow and not guests and not django_suite"

test-newest: $(NEWEST)/.ready ## run what depends on Django's version on the newest one, in an environment of its own
	@$(NEWEST)/bin/python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal -m "newest and not slow and not guests"

test-django: $(READY) ## run Django's own tests with stock Django and with the engine, and compare
	@$(PYTEST) -m django_suite

coverage: $(READY) ## run the tests once and say which lines no test reaches
	@$(PYTEST) --cov -m "not django_suite"

run: migrate ## serve the admin on demo data, at PORT
	@$(BIN)/python manage.py load_demo --users 200 --admin
	@$(BIN)/python -u manage.py runserver $(PORT)

bench: $(READY) ## compare with stock Django and a peer; PARTS=victims,cost,linting,backfill ROWS=100000 SIZES=100,300 ROUNDS=3
	@$(BIN)/python -m tests.bench $(if $(PARTS),--parts $(PARTS)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(HOLD),--hold $(HOLD)) $(if $(TRIALS),--trials $(TRIALS)) $(if $(WAYS),--ways "$(WAYS)") \
		$(if $(SIZES),--sizes $(SIZES)) $(if $(ROUNDS),--rounds $(ROUNDS))

lint: $(READY) ## check style and types, that no migration is missing, and what each one locks and breaks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@DATABASE_URL=postgresql://not-connected-to@localhost/lint $(BIN)/mypy .
	@$(BIN)/python manage.py makemigrations --check --dry-run
	@$(BIN)/python manage.py lintmigrations --fail-level WARNING

wheel: $(READY) ## build the engine as a package, django-zero-downtime, into dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

lock: ## pin the newest allowed versions, with hashes, in requirements/
	uv pip compile $(LOCK) --python-version 3.11 --output-file requirements/production.txt pyproject.toml --group site
	uv pip compile $(LOCK) --python-version 3.11 --output-file requirements/dev.txt --group dev pyproject.toml
	echo "django>=6,<6.2" | uv pip compile $(LOCK) --python-version 3.12 --no-config --no-deps --output-file requirements/newest.txt -

LOCK := --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"

clean: ## remove what the other commands made, but not the data of the embedded PostgreSQL
	@rm -rf $(VENV) $(NEWEST) dist .mypy_cache .pytest_cache .ruff_cache .coverage staticfiles
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: wheel help install migrate test test-all test-server test-newest test-django coverage run bench lint lock clean
