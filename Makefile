# make help | setup | demo | test | lab | docs | bench | run | export | check | clean
# Every target sets up what it needs first; a second call costs seconds.  PYTHON=python3.12 make setup  chooses the Python.
SHELL := /bin/bash
PYTHON ?= python3
RUN := .venv/bin
DONE := .venv/.setup
CRATE := $(wildcard rust_bpe/Cargo.* rust_bpe/src/*.rs)
test check: export OMP_NUM_THREADS = 1

.PHONY: help setup demo test lab docs bench run export readme check clean
.DEFAULT_GOAL := help

help:                   ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @

setup: $(DONE)          ## .venv with everything, the Rust tokenizer included
$(DONE): pyproject.toml constraints.txt tools/setup $(CRATE)
	@PYTHON=$(PYTHON) bash tools/setup && touch $@

demo: $(DONE)           ## read, check, prepare, pretrain, probe and draw, in minutes
	@$(RUN)/ecgnb demo

test: $(DONE)           ## all tests, two at a time; ends with pytest's closing line (T="-k leads" narrows them)
	@$(RUN)/python -m pytest -q -n 2 $(T)

lab: $(DONE)            ## the notebooks in JupyterLab
	@$(RUN)/jupyter lab --notebook-dir=nbs $(LAB)

docs: $(DONE)           ## the site in _docs/ (Quarto where it is installed, pandoc else)
	@$(RUN)/python tools/docs.py

bench: $(DONE)          ## every benchmark (B=--quick: under a minute each)
	@$(RUN)/python -m pip install -q --disable-pip-version-check -c constraints.txt rustbpe tiktoken tokenizers || echo "bench: the peers of benchmarks/bpe.py are not all here"
	@for f in benchmarks/*.py; do [ -e "$$f" ] || continue; echo "== $$f"; $(RUN)/python "$$f" $(B) || exit 1; done

run: $(DONE)            ## run notebooks from top to bottom and store their outputs: make run NB=nbs/3_encoders/my_net.ipynb
	@$(RUN)/jupyter nbconvert --to notebook --execute --inplace $(NB) && $(RUN)/nbdev-clean --fname $(NB)

export: $(DONE)         ## notebooks -> ecgnb/, clean metadata, README.md
	@$(RUN)/nbdev-export && $(RUN)/nbdev-clean && $(RUN)/python tools/readme.py

readme: $(DONE)         ## nbs/index.ipynb -> README.md
	@$(RUN)/python tools/readme.py

check: $(DONE)          ## is everything exported, clean and current? (the fast part of the tests)
	@$(RUN)/python -m pytest -q tests/test_layout.py tests/test_current.py

clean:                  ## remove what can be made again (not .venv, runs or cache)
	@rm -rf _docs _proc dist build .pytest_cache .hypothesis rust_bpe/target nbs/sidebar.yml nbs/nbdev.yml
	@find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
