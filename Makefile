STACK ?= onedl
export STACK
PYTHON_ENV := $(if $(filter openmmlab,$(STACK)),.venv-openmmlab,.venv)/bin/python

.PHONY: help setup demo test lint clean distclean

help:
	@echo 'make setup      install everything into .venv (the other targets do it too)'
	@echo 'make demo       train a small detector on your CPU, from end to end'
	@echo 'make test       run the tests'
	@echo 'make lint       check the style'
	@echo 'make clean      remove caches'
	@echo 'make distclean  remove the environments and the compiled mmcv too'
	@echo
	@echo "ARGS goes to the command: make test ARGS='-k rest'"
	@echo 'STACK=openmmlab takes OpenMMLab releases instead of OneDL forks: make test STACK=openmmlab'
	@echo 'PYTHON names the Python that .venv is made from: make setup PYTHON=python3.12'

setup:
	@tools/setup_env.sh

demo: setup
	@$(PYTHON_ENV) tools/demo.py $(ARGS)

test: setup
	$(PYTHON_ENV) -m pytest -q --durations=10 tests $(ARGS)

lint: setup
	$(PYTHON_ENV) -m ruff check . $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-openmmlab .setup
