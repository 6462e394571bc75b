# make demo   run the whole line on rendered videos and write a report to demo-out/
# make test   lint, types and tests
# make test-matrix   a plain installation with the oldest and the newest allowed versions, on Python 3.10, 3.12 and 3.13
# make test-tensorrt HEADERS=10.3:10.16:11.0:11.1   all that needs TensorRT's headers, with a table. An entry is a folder
#                  with NvInfer.h or a version: of $TENSORRT_HEADERS/VERSION/include, else fetched from GitHub
# make gpu-check   on a machine with a GPU: build, test and time the CUDA kernel; installs nothing and needs no .venv.
#                  In parts: make gpu-check PYTHON=python3 ARGS="--parts build,tests --out DIR"
# make device-check   on a machine with TensorRT: engines of a bundle built, held against ONNX Runtime and timed, with one
#                  JSON file to send back: make device-check PYTHON=python3 ARGS="BUNDLE --out DIR"
# make wheel      this project's wheel in dist/, which the images of containers/ take (docs/containers.md)
# The first four, and wheel, make .venv first when it is missing or older than pyproject.toml or constraints.txt.
# Another interpreter: make test PYTHON=python3.12. The CI Python is 3.11.

PYTHON ?= python3
HEADERS ?= 10.3:10.16:11.0:11.1
BIN := .venv/bin
# The last step of the installation: an interrupted one leaves no stamp and is done again, from nothing: what an older
# pyproject.toml named must not stay.
STAMP := .venv/installed

.PHONY: demo test test-matrix test-tensorrt lint style gpu-check device-check wheel clean

demo: $(STAMP)
	$(BIN)/sdst demo --out demo-out

# pyright runs beside the tests and is shown after them. Three workers on two cores: a fifth of their time they wait for
# servers, browsers and other children. The longest files come first (tests/conftest.py); what took longest is listed.
test: style
	mkdir -p build
	$(BIN)/pyright > build/pyright.log 2>&1 & types=$$!; \
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25; tests=$$?; \
	wait $$types; types=$$?; cat build/pyright.log; exit $$((tests ? tests : types))

test-matrix: $(STAMP)
	$(BIN)/python .ci/matrix.py $(JOBS)

test-tensorrt: $(STAMP)
	$(BIN)/python .ci/tensorrt.py $(HEADERS)

lint: style
	$(BIN)/pyright

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find plugins -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/hadolint containers/Dockerfile.*

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

device-check:
	$(PYTHON) benchmarks/device_check.py $(ARGS)

wheel: $(STAMP)
	rm -rf build/lib build/bdist.* dist/sdst_vtg-*.whl
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

# setuptools comes first and at its pinned version: the build runs in .venv itself (an isolated one would ignore the pins),
# and so does the test that builds the wheel.
$(STAMP): pyproject.toml constraints.txt
	rm -f $(STAMP)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[test]'
	touch $(STAMP)

clean:
	rm -rf .venv build dist demo-out demo-hard-out runtime/sdst_runtime/lib *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
