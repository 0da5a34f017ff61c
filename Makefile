# make book: set up, execute the notebooks, build the HTML.   make test: set up, prove it.   make quick: check one chapter.
# make slides: what a teacher shows, from the notebooks as they are committed.
PYTHON ?= python3
CHAPTER ?= 00_quickstart
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# As in caml_core/__init__.py, for programs that load PyTorch first.
export GOMP_SPINCOUNT ?= 2000
export KMP_BLOCKTIME ?= 1

.PHONY: book slides test quick notebooks check clean
.DELETE_ON_ERROR:

book: $(STAMP)  ## the book, in _build/html
	$(BIN)/python book/build.py

slides: $(STAMP)  ## for teachers: a deck for each session of the course, in _build/slides
	$(BIN)/python book/slides.py

test: $(STAMP)  ## units, browser, then every notebook through nbval
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest tests --durations=10
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --durations=10 \
	  --nbval-lax --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg notebooks
	$(BIN)/python book/build.py --check

quick: $(STAMP)  ## authors: make quick CHAPTER=01_shortcuts
	$(BIN)/ruff check notebooks/$(CHAPTER).py
	$(BIN)/python book/build.py --only $(CHAPTER)

notebooks: $(STAMP)  ## authors: execute changed notebooks and store the results in the committed .ipynb
	$(BIN)/python book/build.py --sync --write

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python %d.%d found; expected 3.11, 3.12 or 3.13. Run: make PYTHON=python3.12 ..." % v[:2])'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); } \
	  || { echo "cannot create $(VENV); expected Python with its venv module (Debian: apt install python3-venv)"; rm -rf $(VENV); exit 1; }
	@echo "installing the pinned packages (several GB the first time, a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[book,test]' \
	  || { echo "pip failed (its own message stands above); expected: network and about 8 GB of free disk. Run make again to go on."; exit 1; }
	@touch $@

clean:  ## what was built, not what was installed
	rm -rf _build
