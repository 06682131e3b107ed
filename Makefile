# Two commands do everything from a fresh clone: `make demo` runs the main job, `make test` passes the tests.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*/* build_tools/*.py) setup.py pyproject.toml

.PHONY: demo test test-long test-versions gpu-check gpu-precompile docs sanitize lint format clean

demo: $(VENV)/installed
	$(BIN)/watnn demo

test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not long"

test-long: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The suite on another torch and Python, built against them in a copy of the tree, without most development packages: what
# needs them skips. `make test-versions TORCH=2.11.0 PYTHON=python3.12`; torch with CUDA is a download of a few GB.
# numpy: the interpreter of triton 3.6 does not work with 2.4
TORCH ?= 2.11.0
VERSION := build/versions/$(TORCH)
VERSION_PACKAGES := torch==$(TORCH) 'numpy<2.4' setuptools wheel ninja pytest pytest-xdist hypothesis matplotlib rich
test-versions:
	$(PYTHON) -m venv $(VERSION)/env
	$(VERSION)/env/bin/python -m pip install --quiet --disable-pip-version-check $(VERSION_PACKAGES)
	rm -rf $(VERSION)/tree && mkdir $(VERSION)/tree
	cp -r $(filter-out build dist site,$(wildcard *)) $(VERSION)/tree
	rm -f $(VERSION)/tree/wat_kernels/*.so
	PATH="$(abspath $(VERSION)/env/bin):$$PATH" WAT_FORCE_NATIVE=1 $(VERSION)/env/bin/python -m pip install --quiet \
	  --disable-pip-version-check --no-deps --no-build-isolation --editable $(VERSION)/tree
	cd $(VERSION)/tree && OMP_NUM_THREADS=1 ../env/bin/python -m pytest -n 2 -m "not long"

# On a machine with a GPU: kernels, tests, sanitizer, speed; writes benchmarks/results/<gpu>/. Nothing is installed: it runs with
# the environment that is here, or with any Python that has torch. `make gpu-check CHECK="--budget 260 --stages facts smoke"`
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
CHECK ?=
gpu-check:
	PYTHONPATH=.:python $(GPU_PYTHON) -m benchmarks.gpu_check $(CHECK)

# before that, on a machine without one: compiles the Triton kernels for sm_90, into build/gpu_check, with the Triton of GPU_PYTHON
gpu-precompile:
	PYTHONPATH=.:python $(GPU_PYTHON) -m benchmarks.gpu_check.precompile

# the pages of docs/ with pictures and a reference, into site/
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html; with search: $(BIN)/python -m http.server -d site"

# the suite of the compiled backend under AddressSanitizer and UBSan, in a copy of the tree so that the library in use stays
SANITIZE := build/sanitize
sanitize: $(VENV)/dependencies
	rm -rf $(SANITIZE) && mkdir -p $(SANITIZE)
	cp -r csrc build_tools wat_kernels python tests setup.py pyproject.toml README.md $(SANITIZE)
	cd $(SANITIZE) && WAT_SANITIZE=address,undefined WAT_FORCE_NATIVE=1 WAT_SKIP_CUDA=1 $(abspath $(BIN))/python setup.py build_ext --inplace
	cd $(SANITIZE) && OMP_NUM_THREADS=2 PYTHONPATH=.:python ASAN_OPTIONS=detect_leaks=0 \
	  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so) $$(c++ -print-file-name=libstdc++.so.6)" \
	  $(abspath $(BIN))/python -m pytest tests/native -m "not long" -p no:cacheprovider

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/dependencies: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# without build isolation: an isolated build would download another torch, several GB of it
$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info python/*.egg-info wat_kernels/*.so
