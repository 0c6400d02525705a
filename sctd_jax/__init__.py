"""sctd_jax: BERT pretraining with token dropping and ScTD in JAX/Flax."""

import importlib.util
import sys

__version__ = "0.1.0"

# Before any other import: what fails in another Python is its syntax or its packages, with messages that name neither.
_old = sys.version_info < (3, 11)
if _old or importlib.util.find_spec("jax") is None:
    _why = "Python 3.11 or newer is needed" if _old else "jax is not installed"
    _this = f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, {sys.executable}"
    print(f"error: {_why}; {_this}: use .venv/bin/python, which make venv makes", file=sys.stderr)
    sys.exit(2)
