# make demo | test | test-fast | lint | format | readme | bench – each sets up what it needs, with only python3 and make present.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = coprobe tests benchmarks notebooks

# The stamps are newer than setup.cfg once its dependencies are installed.
RUN = $(VENV)/.run
DEV = $(VENV)/.dev
PEERS = $(VENV)/.peers

.PHONY: demo pair paper campaign campaign-status notebooks test test-fast lint format readme bench clean

demo: $(RUN)
	$(BIN)/coprobe demo

# The pair of models of README.md with its figures and numbers, from real CIFAR-10: `make -j2 pair`, about a quarter of
# an hour on two cores. One thread per model, so that the numbers do not depend on how many cores there are.
# DATA=parquet:DIR or DATA=folder:DIR takes the images from there instead of downloading them.
DATA ?= cifar10
PAIR = --method fgsm --data $(DATA) --arch resnet18 --width 16 --eps-train 16 --limit-train 10000 --held-out 500 \
	--epochs 10 --batch-size 64 --lr 0.2

runs/co/checkpoint.pt: | $(RUN)
	OMP_NUM_THREADS=1 $(BIN)/coprobe train $(PAIR) --out runs/co --overwrite

runs/stable/checkpoint.pt: | $(RUN)
	OMP_NUM_THREADS=1 $(BIN)/coprobe train $(PAIR) --stable-node B --stable-weight 50 --out runs/stable --overwrite

pair: runs/co/checkpoint.pt runs/stable/checkpoint.pt
	for number in 1 3 4; do $(BIN)/coprobe figure $$number runs/co runs/stable --out figures/pair || exit 1; done
	$(BIN)/coprobe evaluate runs/co runs/stable --attacks fgsm,pgd:10,pgd:50,cw,apgd-ce --out figures/pair/evaluation.csv

# Every figure, table and claim at one scale: from the results in the repository, and what they lack is made.
# `make paper SCALE=small DATA=parquet:DIR`
SCALE ?= demo
paper: $(RUN)
	$(BIN)/coprobe paper --scale $(SCALE) --runs benchmarks/campaign/results/$(SCALE) \
		$(if $(filter demo,$(SCALE)),,--cifar10 $(DATA))

# The small scale in the background, at the lowest priority: whatever of it is not in the repository yet is trained and
# measured. It can be stopped or killed at any moment, and the same command goes on. Only its results come into the
# repository; the weights stay in WEIGHTS, and where they are lost, what is still needed of them is trained again.
# `make campaign DATA=parquet:DIR`
WEIGHTS ?= $(or $(COPROBE_CACHE),$(HOME)/.cache/coprobe)/campaign/small
CAMPAIGN = $(BIN)/coprobe paper --scale small --runs benchmarks/campaign/results/small --weights $(WEIGHTS) \
	--cifar10 $(DATA)
campaign: $(RUN)
	$(CAMPAIGN) --background --jobs 2

campaign-status: $(RUN)
	@$(CAMPAIGN) --jobs 2 --plan

# Runs the notebooks and keeps the outputs in them: on the results of the demo scale, and start_here, which trains two
# models of its own, where one of them collapses.
notebooks: $(DEV)
	OMP_NUM_THREADS=1 COPROBE_SCALE=demo $(BIN)/python -m notebooks.run \
		$(filter-out start_here,$(basename $(notdir $(wildcard notebooks/*.ipynb))))
	OMP_NUM_THREADS=1 COPROBE_SCALE=demo $(BIN)/python -m notebooks.run start_here

test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

# For the daily loop: without what trains for long or starts processes.
test-fast: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not procs and not browser" $(PYTEST)

lint: $(DEV)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Writes the tables of README.md anew from the registries; a test fails while they are stale.
readme: $(DEV)
	$(BIN)/python -m tests.readme_tables

# Every benchmark at a small size, some ten minutes on two cores; none of it is kept. What they ask for is meant for
# full width on real images: `make bench BENCH="--checkpoint runs/co --data parquet:DIR" BENCH_ATTACK= BENCH_MEMORY=…`.
BENCH ?= --width 16 --images 32
BENCH_ATTACK ?= --accuracy-images 64 --loop-images 32
BENCH_MEMORY ?= --data digits --own-batch-size 32 --sizes 60,360
bench: $(PEERS)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.attack $(BENCH) $(BENCH_ATTACK)
	$(BIN)/python -m benchmarks.probe $(BENCH)
	$(BIN)/python -m benchmarks.evaluate $(BENCH)
	$(BIN)/python -m benchmarks.memory $(BENCH_MEMORY)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN): setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torchattacks pins old versions of what it doesn't need for PGD, so it comes without its dependencies.
$(DEV): $(RUN)
	$(BIN)/python -m pip install --quiet --editable .[dev]
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1
	touch $@

# adv-lib and nnsight need visdom, which doesn't build with a current setuptools, and transformers, which others would
# load too, for what the benchmarks don't use; of nnsight's other needs, the extra has those it can't do without.
$(PEERS): $(DEV)
	$(BIN)/python -m pip install --quiet --editable .[bench]
	$(BIN)/python -m pip install --quiet --no-deps adv-lib==0.2.8 nnsight==0.8.1
	touch $@
