PYTHON ?= python3
BIN := .venv/bin
SOURCES := adacache_export engines/adacache_engines runtime/adacache_runtime runtime/adacache_tune runtime/adacache_serve tools
EXTRAS := compare,cpu,export,otel,peers,plot,postgresql,profile,s3,serve,trt-rtx,dev

# two processes on two cores: threads of their own would only wait for one another
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test test-slow table frontier bench clean

demo: .venv/installed
	$(BIN)/python -m tools.demo.run

# what CI runs, with the next one
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2 $(SOURCES)
	$(PYTEST) --dist loadfile -m "not slow"

# the tests that take longest
test-slow: .venv/installed
	$(PYTEST) --dist worksteal -m slow

# the README's table
table: .venv/installed
	$(BIN)/python -m tools.demo.table

# what the README says of policies and calibration: about half an hour
frontier: .venv/installed
	$(BIN)/python -m tools.demo.frontier --results tools/results
	$(BIN)/python -m tools.demo.moreg --results tools/results

bench: .venv/installed
	$(BIN)/python tools/bench.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps tensorrt-stubs nvidia-pytriton
	# the Triton in nvidia-pytriton reads arrays of numpy 1 only; where there is none, its tests are skipped
	-$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --target .venv/triton numpy==1.26.4
	touch $@

clean:
	rm -rf .venv out build dist
