# `make` alone says what there is.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slurm soak lint format docs lock clean

PYTHON ?= python3
CORES ?= 2
VENV := .venv
INSTALLED := $(VENV)/.installed
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
INSTALL_SLURM := apt-get install --no-install-recommends slurm-wlm munge

help: ## Say what there is
	@echo "make TARGET [CORES=2] [PYTHON=python3] [TORCH_INDEX=URL]"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile
	@echo "TORCH_INDEX is one more package index, to take torch from: for example"
	@echo "https://download.pytorch.org/whl/cpu, whose wheels are small and for the CPU only."

demo: $(INSTALLED) ## Run the pocket experiment, from data to report, and show its results
	$(IN_VENV) snakemake --cores $(CORES)
	@$(IN_VENV) python -m latentwire show

test: $(INSTALLED) ## Run the tests, those on SLURM apart
	$(IN_VENV) python -m pytest -m "not slurm" --numprocesses $(CORES)

test-slurm: $(INSTALLED) ## Kill trainings on a private SLURM in every way there is; 10 minutes
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld > /dev/null || \
	  if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ]; then apt-get update && $(INSTALL_SLURM) --yes; \
	  else echo "SLURM is not here. As root: $(INSTALL_SLURM)"; exit 1; fi
	$(IN_VENV) python -m pytest -m slurm tests/slurm

soak: $(INSTALLED) ## Run the long simulations of the statistics, and kill trainings at 200 moments
	$(IN_VENV) python benchmarks/statistics_simulation.py
	$(IN_VENV) KILL_POINTS=200 python -m pytest tests/unit/test_kill_points.py

lint: $(INSTALLED) ## Check style, types and workflow
	$(IN_VENV) ruff check
	$(IN_VENV) ruff format --check
	$(IN_VENV) mypy
	$(IN_VENV) snakefmt --check Snakefile workflow
	$(IN_VENV) snakemake --lint

format: $(INSTALLED) ## Let the formatters decide about style
	$(IN_VENV) ruff check --fix
	$(IN_VENV) ruff format
	$(IN_VENV) snakefmt Snakefile workflow

docs: $(INSTALLED) ## Build the documentation as a site, in site/
	$(IN_VENV) uv pip install --quiet --constraint requirements.lock --group docs
	$(IN_VENV) NO_MKDOCS_2_WARNING=1 mkdocs build

# torch asks by itself for the CUDA packages of its build, and for none in a build for the CPU.
lock: $(INSTALLED) ## Pin what pyproject.toml asks for; known pins stay, delete a line to renew it
	$(IN_VENV) uv pip compile --all-extras --python-version 3.11 --annotation-style line \
	  --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml
	sed -i -E '/^(nvidia-|cuda-|triton)/d' requirements.lock
	sed -i '/- pip:/q' environment.yml
	sed -nE 's/^([^ #]+).*/      - \1/p' requirements.lock >> environment.yml

clean: ## Remove the environment and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "LatentWire needs Python 3.11 or later; for example: make PYTHON=python3.12")'
	@echo "Setting up $(VENV); this takes some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) python -m pip install --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement requirements.lock
	$(IN_VENV) python -m pip install --disable-pip-version-check --quiet \
	  --no-deps --no-build-isolation --editable .
	touch $@
