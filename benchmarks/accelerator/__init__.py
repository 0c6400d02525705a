r"""One command for a machine with an accelerator, its parts each in a module, most important first.

python -m benchmarks.accelerator --minutes 8 --out runs/accelerator

`make accelerator` runs it in `.venv-cuda`, made of requirements.txt and JAX's wheels for CUDA. Where JAX finds a device
already, `make accelerator DEVICE_PYTHON=python3` takes that Python. On a CPU, `--smoke` tries every part at toy size.
Each part writes PART.json after every item that it has measured, and its lines to table.txt. A part that fails, that
has to be ended, or that finds numbers or a kernel wrong (`wrong` in its JSON) is said in both; the next one goes on and
the exit status is 1. What was left out for time is named; `--parts numbers,speed` chooses.

A machine without a network, with Python 3.12 and JAX, Flax, Optax, Orbax, pyarrow, matplotlib, scikit-learn and pytest,
takes the rest as wheels. Where there is a network:

pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    -d runs/wheels -r benchmarks/requirements-accelerator.txt
pip wheel --no-deps -w runs/wheels promise==2.3

and there, with `runs/wheels` in the folder of the repository, before the command:

pip install --no-deps --no-index runs/wheels/*.whl

Targets for one H100 (bf16 peak 989 TFLOP/s), BERT-base, N 512, to be reached or explained once it has run:
full at 45% MFU, 757,000 tokens/s, and at least what PyTorch reaches at its best; ScTD average at 1.0 million tokens/s,
1.35 times PyTorch's full.
"""
