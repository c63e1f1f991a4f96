STACK ?= onedl
export STACK
PYTHON_ENV := .venv$(patsubst %,-%,$(filter-out onedl,$(STACK)))/bin/python
TESTS ?= tests

.PHONY: help setup demo test torture bench bench-gpu docs lint clean distclean

help:
	@echo 'make setup      install everything into .venv (the other targets do it too)'
	@echo 'make demo       train a small detector on your CPU, from end to end'
	@echo 'make test       run the tests'
	@echo 'make torture    the slow tests, and the oldest PyTorch that mmrest takes (8 GB more)'
	@echo 'make bench      measure ResT beside its peers on your CPU (20 minutes)'
	@echo 'make bench-gpu  the same on your GPU'
	@echo 'make docs       build the documentation into docs/_build/html'
	@echo 'make lint       check style, spelling and types'
	@echo 'make clean      remove caches'
	@echo 'make distclean  remove the environments and a compiled mmcv too'
	@echo
	@echo "ARGS goes to the command: make test ARGS='-k rest'"
	@echo 'STACK=openmmlab takes OpenMMLab releases instead of OneDL forks: make test STACK=openmmlab'
	@echo 'STACK=floor takes the oldest PyTorch that mmrest takes: make test STACK=floor'
	@echo 'MMCV=compiled takes mmcv with compiled operators: make test MMCV=compiled'
	@echo 'PYTHON names the Python that .venv is made from: make setup PYTHON=python3.12'

setup:
	@scripts/setup_env.sh

demo: setup
	@$(PYTHON_ENV) scripts/demo.py $(ARGS)

# One thread a process: threads of two processes that share cores wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
		--durations=10 $(TESTS) $(ARGS)

torture: setup
ifeq ($(STACK) $(ARGS),onedl )
	$(MAKE) test STACK=floor TESTS='tests/models tests/ops'
endif
	OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
		--durations=10 tests --torture $(ARGS)

bench: setup
	$(PYTHON_ENV) benchmarks/run.py $(ARGS)

bench-gpu: setup
	$(PYTHON_ENV) benchmarks/run.py --gpu $(ARGS)

docs: setup
	$(PYTHON_ENV) -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)

lint: setup
	$(PYTHON_ENV) -m pre_commit run --all-files $(ARGS)

clean:
	rm -rf build dist *.egg-info mmcv_ops/build mmcv_ops/*.egg-info docs/_build
	rm -rf .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-openmmlab .venv-floor .setup
