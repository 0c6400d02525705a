"""sctd_jax: BERT pretraining with token dropping and ScTD in JAX/Flax."""

import importlib.util
import signal
import sys

__version__ = "0.1.0"

# Checked before any other import: another Python fails by its syntax or packages, with messages that name neither.
_old = sys.version_info < (3, 11)
# One command needs no jax: sctd_jax.interop.convert runs where torch or TensorFlow is.
_command = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
_wants_jax = _command.startswith("sctd_jax.") and _command != "sctd_jax.interop.convert"
if _old or (_wants_jax and importlib.util.find_spec("jax") is None):
    _why = "Python 3.11 or newer is needed" if _old else "jax is not installed"
    _this = f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, {sys.executable}"
    print(f"error: {_why}; {_this}: use .venv/bin/python, which make venv makes", file=sys.stderr)
    sys.exit(2)
# A command that is interrupted while its modules are imported ends without a traceback; later `errors.run_command`
# answers. A background job's shell has it ignored.
if _command.startswith("sctd_jax."):
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sctd_jax.errors import keep_output_from_ending_work

    keep_output_from_ending_work()
