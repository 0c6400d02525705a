"""Pretraining, evaluation, fine-tuning, sweeps, predictions, and compiling for TPUs that are not there.

python -m sctd_jax.main --config=configs/base.py [--workdir=runs/base] [--config.x.y=value] [--mode=train|eval]
python -m sctd_jax.main --mode=compile --topology=v5e:2x4 --config=configs/base.py
python -m sctd_jax.main --mode=finetune --config=configs/finetune.py --config.task=boolq --config.init=RUN
    --config.data_dir=SuperGLUE
python -m sctd_jax.main --mode=sweep --config=configs/sweep.py --config.tasks=cola,rte --config.inits=RUN,RUN
    --config.data_dir=glue_data
python -m sctd_jax.main --mode=predict --config.init=RUN --config.data_dir=FILE --out=FILE
"""

import collections
import itertools
import os
import re
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

if __name__ == "__main__" and not __package__:  # started by its path, not by -m
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from sctd_jax.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # done before the imports that take seconds

# Orbax and TFDS import it eagerly in places; nothing here computes with it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Recomputed attention with dropout overflows the stacks that the compiler of libtpu 0.0.42 gives its threads.
os.environ.setdefault("LIBTPU_INIT_ARGS", "--fibers_default_thread_stack_size=8388608")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sctd_jax import recipes
from sctd_jax.arguments import tell_of_repeated
from sctd_jax.config import from_dict
from sctd_jax.errors import UserError, check_working_folder, print_error, printable, run_command, say
from sctd_jax.fields import fill, in_plain_digits
from sctd_jax.storage import regular_file


def _values(option: str, arguments: list[str]) -> list[str]:
    """Values of an option, behind a = or as the next argument."""
    return [
        match[1] if match[1] is not None else following
        for argument, following in itertools.pairwise([*arguments, ""])
        if (match := re.fullmatch(rf"--?{option}(?:=(.*))?", argument))
    ]


try:
    check_working_folder()
    for flagfile in _values("flagfile", sys.argv):  # ml_collections reads it when the flag is defined
        regular_file(os.path.expanduser(flagfile))
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, e.g. configs/base.py; its fields are below.")
except (UserError, flags.Error, UnicodeError) as unread:
    print_error(unread)
    sys.exit(2)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default runs/<config name>.")
_MODE = flags.DEFINE_enum("mode", "train", list(recipes.DEFAULT), "What to do.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several hosts: host:port of process 0, told to all.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many processes.", 1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Several hosts: which one this is, from 0.", 0)
_TOPOLOGY = flags.DEFINE_string("topology", None, "With --mode=compile: a TPU slice, such as v5e:2x4.")
_OUT = flags.DEFINE_string("out", None, "With --mode=predict: the file to write, FILE.jsonl, .csv or .conll.")
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


_OPTIONS = (
    _CONFIG, _WORKDIR, _MODE, _COORDINATOR, _PROCESSES, _PROCESS, _OUT, _TOPOLOGY, _MFU,
    _LARGEST_BATCH,
)  # fmt: skip


def _run_mode() -> int:
    """Run the mode, if the recipe and the options are for it."""
    mode, fits = _MODE.value, recipes.modes(_CONFIG.value)
    if mode not in fits:
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        if not fits:
            raise UserError(f"--config={path} is a recipe of an arena: python -m sctd_jax.arena runs it")
        advice = f"give --mode={' or --mode='.join(fits)}"
        if flags.FLAGS["mode"].present:
            advice += f", or a recipe such as {recipes.DEFAULT[mode]}"
        raise UserError(f"--config={path} is no recipe for --mode={mode}: {advice}")
    if None not in (_PROCESS.value, _PROCESSES.value) and _PROCESS.value >= _PROCESSES.value:
        raise UserError(f"--process_id={_PROCESS.value} must be below --num_processes={_PROCESSES.value}: from 0 on")
    for option in (_TOPOLOGY, _MFU, _LARGEST_BATCH):
        if mode != "compile" and flags.FLAGS[option.name].present:
            raise UserError(f"--{option.name} is for --mode=compile; a run takes the devices and the batch that it has")
    for option in (_WORKDIR, _COORDINATOR, _PROCESSES, _PROCESS):
        if mode == "compile" and flags.FLAGS[option.name].present:
            say(f"note: --{option.name} is not used by --mode=compile")
    if mode != "predict" and _OUT.value is not None:
        raise UserError("--out is for --mode=predict; a run writes into its --workdir")
    run = {
        "train": _train, "eval": _evaluate, "compile": _compile, "finetune": _finetune, "sweep": _sweep,
        "predict": _predict,
    }  # fmt: skip
    return run[mode]()


# Each checks its configuration before it imports what loads JAX, so that `--help` and a bad config answer at once.
def _train() -> int:
    config = from_dict(_CONFIG.value.to_dict())
    from sctd_jax.pretrain.pretraining import train_and_evaluate

    _join_hosts()
    return _status(train_and_evaluate(config, _workdir(), say).stopped_by)


def _evaluate() -> int:
    config = from_dict(_CONFIG.value.to_dict())
    from sctd_jax.pretrain.pretraining import evaluate_workdir

    _join_hosts()
    evaluate_workdir(config, _workdir(), say)
    return 0


def _finetune() -> int:
    from sctd_jax.finetune.config import from_dict

    config = from_dict(_CONFIG.value.to_dict())
    from sctd_jax.finetune.finetuning import finetune

    _join_hosts()
    workdir = _WORKDIR.value or Path("runs", f"finetune-{config.task}")
    return _status(finetune(config, workdir, say).stopped_by)


def _sweep() -> int:
    from sctd_jax.finetune.config import sweep_from_dict

    sweep = sweep_from_dict(_CONFIG.value.to_dict())
    from sctd_jax.finetune.sweep import run_sweep

    _join_hosts()
    return _status(run_sweep(sweep, _WORKDIR.value or "runs/sweep", say))


def _predict() -> int:
    from sctd_jax.finetune.config import PredictConfig

    config = fill("config", PredictConfig, _CONFIG.value.to_dict())
    if not _OUT.value:
        raise UserError("--mode=predict needs --out, such as --out=predicted.jsonl")
    if _WORKDIR.value:
        raise UserError("--workdir is not for --mode=predict: --config.init names the run, --out the file")
    from sctd_jax.finetune.predicting import predict_file

    _join_hosts()
    predict_file(config, _OUT.value, say)
    return 0


def _compile() -> int:
    if not _TOPOLOGY.value:
        raise UserError("--mode=compile needs --topology, such as --topology=v5e:2x4")
    if not 0 < _MFU.value <= 1:  # a NaN passes the flag's own bounds
        raise UserError(f"--mfu={_MFU.value} must be a number from 0.01 to 1")
    config = from_dict(_CONFIG.value.to_dict())
    os.environ.update(WITHOUT_CHIPS)
    from sctd_jax.tpu.compile import compile_for
    from sctd_jax.tpu.largest_batch import largest_batches

    if _LARGEST_BATCH.value:
        fits = largest_batches(config, _TOPOLOGY.value, say)
    else:
        fits = compile_for(config, _TOPOLOGY.value, say, _MFU.value)
    return 0 if fits else 1


def _workdir() -> str | Path:
    return _WORKDIR.value or Path("runs", Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem)


def _join_hosts() -> None:
    from sctd_jax.parallel import hosts

    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report every file they touch
    hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def _status(stopped_by: int | None) -> int:
    """Exit status of a run that ended, or that a signal stopped."""
    return 0 if stopped_by is None else 128 + stopped_by


def _main(argv: list[str]) -> int:
    try:
        status = run_command(_run_mode)
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
            time.sleep(_FAREWELL_SECONDS)  # its end ends the others, who may have something to say yet
        os._exit(status)  # JAX would wait for the others at a normal exit, in vain
    return status


def _joined_others() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _parse(argv: list[str]) -> list[str]:
    """Absl's parsing; a wrong command line or recipe is one line and exit status 2, and `--help` is ours."""
    try:
        arguments = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
        asked = any(re.fullmatch(r"-h|--?help(short|full)?", argument) for argument in arguments)
        given = _given(arguments, optional=asked)
        path = recipes.find(given, None if asked else say)
        config = recipes.load(path)
        if asked:
            print(_help(path, config))
            sys.exit(0)
        return _parse_flags([argv[0], *_with_recipe(arguments, path)], path, config)
    except UserError as error:
        print_error(error)
    except (flags.Error, KeyError, AttributeError, OSError, TypeError, ValueError) as error:
        message = (str(error).strip() or repr(error)).splitlines()[-1]
        print(f"error: {printable(message)}; see --help", file=sys.stderr)
    sys.exit(2)


def _given(arguments: list[str], optional: bool) -> str:
    """Value of --config; `optional`, and for predictions: where it is missing, a recipe with all fields of the mode."""
    given = _values("config", arguments)
    if len(given) > 1:
        raise UserError(f"--config is given {len(given)} times: {', '.join(given)}")
    if given == [""]:
        raise UserError("--config has no value: it names a recipe, such as --config=configs/tiny.py")
    mode = re.search(r"--?mode[= ](\w+)", " ".join(arguments))
    if not given and (optional or (mode and mode[1] == "predict")):
        return recipes.DEFAULT.get(mode[1] if mode else "train", recipes.DEFAULT["train"])
    if not given:
        bare = [argument for argument in arguments if re.match(r"[^-].*\.py(:|$)", argument)]
        advice = f"write --config={bare[0]}" if bare else "it names a recipe, such as --config=configs/tiny.py"
        raise UserError(f"--config is missing: {advice}; see --help")
    return given[0]


def _with_recipe(arguments: list[str], path: str) -> list[str]:
    """Arguments with this value of --config: the flag's own parser reads the file too, from the working folder only."""
    found = [i for i, argument in enumerate(arguments) if re.fullmatch(r"--?config(=.*)?", argument)]
    if not found:
        return [f"--config={path}", *arguments]
    after = found[0] + (1 if "=" in arguments[found[0]] else 2)
    return [*arguments[: found[0]], f"--config={path}", *arguments[after:]]


def _parse_flags(argv: list[str], path: str, config: ConfigDict) -> list[str]:
    arguments = argv[1:]
    named = [re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments]
    recipes.check_fields(path, config, [match[1] for match in named if match])
    own = [option.name for option in _OPTIONS]
    for argument, following in itertools.pairwise([*arguments, "--"]):
        name = argument.lstrip("-") if argument.startswith("-") else ""
        wants = name in own if "." not in name else recipes.expected(name.removeprefix("config."), config)
        if wants and wants != recipes.BOOLEAN and name != _LARGEST_BATCH.name and following.startswith("--"):
            raise UserError(f"{argument} has no value: write {argument}=VALUE")
        if name == "workdir=":
            raise UserError("--workdir is empty; without it the run lives in runs/<config name>")
        field = re.match(r"--?config\.([^=]+)=(.*)", argument, re.DOTALL)
        expected = recipes.expected(field[1], config) if field else ""
        if field and expected.endswith("number") and not in_plain_digits(field[2]):
            found = printable(field[2])[:80]
            raise UserError(f"--config.{field[1]} must be {expected} in the digits 0 to 9, found {found!r}")
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        meant = recipes.suggestion(error.flagname, config, own)
        raise UserError(f"--{error.flagname} is not known; {meant}") from error
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --config\.([^=]+)=(.*?): ", str(error), re.DOTALL)
        if not match:
            raise
        found = f"must be {recipes.expected(match[1], config)}, found {match[2]!r}"
        raise UserError(f"--config.{match[1]} {found}") from error
    if len(rest) > 1:
        before = argv[argv.index(rest[1]) - 1]
        if "=" in rest[1]:
            advice = f"; did you mean --{rest[1]}?"
        elif before.startswith("-") and "=" not in before:  # an option that is true by being there
            advice = f"; did you mean {before}={rest[1]}?"
        else:
            advice = "; options begin with --, see --help"
        raise UserError(f"unexpected argument {printable(rest[1])}{advice}")
    given = [re.match(r"--?(?:no)?([\w.]+)(=|$)", argument) for argument in arguments]
    tell_of_repeated(collections.Counter(f"--{match[1]}" for match in given if match))
    return rest


def _help(path: str, config: ConfigDict) -> str:
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    rows = []
    for option in _OPTIONS:
        flag = flags.FLAGS[option.name]
        values = "|".join(getattr(flag.parser, "enum_values", ())) or ("" if flag.boolean else flag.name.upper())
        default = "" if flag.default in (None, False) else f" Default {flag.default}."
        meaning = re.sub(r"^<[^>]*>: ", "", flag.help)  # absl puts an enum's values in front
        rows.append((f"--{option.name}" + (f"={values}" if values else ""), meaning + default))
    return "\n".join(
        [
            (__doc__ or "").strip(),  # none under -OO
            "",
            "Options:",
            *recipes.columns(rows, width),
            "",
            "Recipes, in the working folder or installed; any other FILE.py with a function get_config() is one too:",
            *recipes.columns([(name, recipes.summary(name)) for name in recipes.available()], width),
            "",
            f"Fields of {path}: type, value there and meaning. Each is set by --config.NAME=VALUE.",
            "Those of other recipes: --config=RECIPE --help, or --mode=MODE --help.",
            "",
            recipes.describe(config, width),
        ]
    )


if __name__ == "__main__":
    app.run(_main, flags_parser=_parse)
