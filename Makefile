# Every target sets up .venv by itself when it is missing or older than pyproject.toml or constraints.txt: what runs the
# package gets its dependencies alone, what tests it the extras too.
# Needs make and Python 3.11 or later (PYTHON=python3.12 chooses one). ARGS is passed on: make demo ARGS=--quick

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/set-up-run
STAMP := $(VENV)/set-up
DOCS := .venv-docs
RAY := $(VENV)/set-up-ray
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
ARGS ?=
# Tests run in JOBS processes, a file in one of them; each process starts its own servers.
JOBS ?= 2

.PHONY: help demo serve chat bench test test-all test-browser docs lint format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: $(RUN) ## answers, speed and reuse of every cache mode with the bundled model; a plot to out
	@mkdir -p out
	$(BIN)/shoal demo --plot out/demo.png $(ARGS)

serve: $(RUN) ## serve the bundled model over HTTP
	$(BIN)/shoal serve --model-path shop $(ARGS)

chat: $(RUN) ## talk to a running server (make serve) in the terminal; ARGS=URL for another one
	$(BIN)/shoal chat $(ARGS)

bench: $(STAMP) ## every benchmark that runs on this machine; tables to out/benchmarks
	@mkdir -p out/benchmarks
	@set -e; for file in $$(grep -l '^if __name__ == "__main__":' benchmarks/*.py | grep -v plot_); do \
		name=$$(basename $$file .py); echo "$$file"; \
		$(BIN)/python -m benchmarks.$$name --out out/benchmarks/$$name.csv $(ARGS); \
	done

test: $(STAMP) ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: test $(RAY) ## the tests, then the slow ones, which measure and run alone (some on a local Ray cluster)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: $(STAMP) ## the playground in Chromium (apt-get install chromium, or playwright install chromium)
	$(BIN)/python -m pytest -rs tests/runtime/http/test_browser.py $(ARGS)

docs: $(DOCS)/set-up ## the documentation as a site, to out/site; ARGS=serve shows it while you write
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs $(or $(ARGS),build)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p shoal
	$(BIN)/mypy tests benchmarks docs

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, builds and caches (not out, where trainings live)
	rm -rf $(VENV) $(DOCS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is named in the same command as all else: so the pinned release is the one that is resolved, once.
$(RUN): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "shoal needs Python 3.11 or later; make PYTHON=... chooses one" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Setting up $(VENV): about 2 GB, a minute on a fast network"
	$(PIP) "$$(grep '^torch==' constraints.txt)" -e .
	@touch $@

$(STAMP): $(RUN)
	@echo "Adding what the tests need to $(VENV): clients, linters"
	$(PIP) "$$(grep '^torch==' constraints.txt)" -e '.[test,clients,lint,text,browser,docs]'
	@touch $@

# The site is made without running the package, so its tools stand alone: 0.2 GB in place of 2.
$(DOCS)/set-up: pyproject.toml constraints.txt
	@$(DOCS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS)
	@echo "Setting up $(DOCS)"
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' >$(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r $(DOCS)/requirements.txt
	@touch $@

$(RAY): $(STAMP)
	@echo "Adding Ray to $(VENV): 250 MB"
	$(PIP) "$$(grep '^torch==' constraints.txt)" -e '.[ray]'
	@touch $@
