"""The command.

python -m sctd_jax.main --config=configs/base.py [--workdir=runs/base] [--config.x.y=value] [--mode=train|eval]
python -m sctd_jax.main --mode=compile --topology=v5e:2x4 --config=configs/base.py
python -m sctd_jax.main --mode=finetune --config=configs/finetune.py --config.task=boolq --config.init=RUN
    --config.data_dir=SuperGLUE
python -m sctd_jax.main --mode=sweep --config=configs/sweep.py --config.tasks=cola,rte --config.inits=RUN,RUN
    --config.data_dir=glue_data
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from sctd_jax.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before the imports that take seconds

# Orbax and TFDS import it eagerly in places; nothing here computes with it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Recomputed attention with dropout overflows the stacks that the compiler of libtpu 0.0.42 gives its threads.
os.environ.setdefault("LIBTPU_INIT_ARGS", "--fibers_default_thread_stack_size=8388608")

from absl import app, flags, logging
from ml_collections import config_flags

from sctd_jax.config import from_dict
from sctd_jax.errors import UserError, printable, run_command, say

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, e.g. configs/base.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default runs/<config name>.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "compile", "finetune", "sweep"], "What to do.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several hosts: host:port of process 0, told to all.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many processes.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Several hosts: which one this is, from 0.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "With --mode=compile: a TPU slice, such as v5e:2x4.")
_MFU = flags.DEFINE_float("mfu", 0.4, "With --mode=compile: reckoned with for the run's length.", 0.01, 1.0)
_LARGEST_BATCH = flags.DEFINE_bool("largest_batch", False, "With --mode=compile: find it; the config's is the start.")
# Read when JAX is imported: the compiler shall look for neither chips nor a TPU VM's metadata server.
WITHOUT_CHIPS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any: without one libtpu looks for it, and complains
}
_FAREWELL_SECONDS = 3


def _dispatch() -> int:
    if _MODE.value == "compile":
        return _compile()
    if _TOPOLOGY.value:
        raise UserError("--topology is for --mode=compile; a run takes the devices that it finds")
    if _MODE.value in ("finetune", "sweep"):
        return _finetune() if _MODE.value == "finetune" else _sweep()
    config = from_dict(_CONFIG.value.to_dict())
    # After all that, so that `--help` and a bad config answer without loading JAX.
    from sctd_jax.parallel import hosts
    from sctd_jax.train.loop import evaluate_workdir, train_and_evaluate

    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report every file they touch
    hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    workdir = _WORKDIR.value or Path("runs", Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem)
    if _MODE.value == "eval":
        evaluate_workdir(config, workdir, say)
        return 0
    result = train_and_evaluate(config, workdir, say)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def _finetune() -> int:
    from sctd_jax.finetune import settings

    config = settings.from_dict(_CONFIG.value.to_dict())
    from sctd_jax.finetune.loop import finetune

    workdir = _WORKDIR.value or Path("runs", f"finetune-{config.task}")
    stopped_by = finetune(config, workdir, _joined(), say).stopped_by
    return 0 if stopped_by is None else 128 + stopped_by


def _sweep() -> int:
    from sctd_jax.finetune import sweep

    cells = sweep.from_dict(_CONFIG.value.to_dict())
    workdir = _WORKDIR.value or "runs/sweep"
    stopped_by = sweep.run_sweep(cells, workdir, _joined(), say)
    return 0 if stopped_by is None else 128 + stopped_by


def _joined() -> dict:
    """Join the other hosts; the recipe of what a folder of transformers does not say."""
    from configs import base
    from sctd_jax.parallel import hosts

    logging.set_verbosity(logging.ERROR)
    hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    return base.get_config().to_dict()


def _compile() -> int:
    if not _TOPOLOGY.value:
        raise UserError("--mode=compile needs --topology, such as --topology=v5e:2x4")
    config = from_dict(_CONFIG.value.to_dict())
    os.environ.update(WITHOUT_CHIPS)
    from sctd_jax.parallel.aot import compile_for
    from sctd_jax.parallel.fitting import fit_for

    if _LARGEST_BATCH.value:
        return 0 if fit_for(config, _TOPOLOGY.value, say) else 1
    return 0 if compile_for(config, _TOPOLOGY.value, say, _MFU.value) else 1


def _main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        status = run_command(_dispatch)
    except Exception:  # whatever it is, this process must not wait for the others, nor they for it
        if not _joined_others():
            raise
        traceback.print_exc()
        status = 1
    stopped_together = status == 128 + signal.SIGTERM
    if status and not stopped_together and _joined_others():
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.modules["jax"].process_index() == 0:
            time.sleep(_FAREWELL_SECONDS)  # its end is the others' end, who may have something to say yet
        os._exit(status)  # at a normal exit JAX waits for the others, which would be in vain
    return status


def _joined_others() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _parse(argv: list[str]) -> list[str]:
    """Absl's parsing, with config problems as one line too."""
    for argument in argv[1:]:
        path = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not Path(path).is_file():
            print(f"error: --config={path}: no such file", file=sys.stderr)
            sys.exit(2)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, AttributeError, FileNotFoundError, TypeError, ValueError) as error:
        # An error inside a recipe arrives as a traceback in the message; its last line says what is wrong.
        print(f"error: {printable(str(error).strip().splitlines()[-1])}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(_main, flags_parser=_parse)
