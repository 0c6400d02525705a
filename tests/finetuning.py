"""Fine-tuning of a tiny model, for several tests; see the fixtures `pretrained` and `folders` in conftest."""

from configs import finetune as recipe
from sctd_jax.data import tokenizer
from sctd_jax.finetune import config as finetune_settings
from sctd_jax.finetune.finetuning import finetune
from sctd_jax.tasks.table import TASKS
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.workdir import write_config
from tests import helpers, task_files

CONFIG = helpers.config(dropping__method="full", model__num_layers=1, model__max_positions=64)


def write_pretrained(workdir, rows, seed=5, scale=0.02):
    """A pretraining workdir at step 0: one layer, 64 positions."""
    workdir.mkdir()
    file = tokenizer.find(rows)
    (workdir / file.name).write_bytes(file.read_bytes())
    write_config(workdir, CONFIG)
    state = helpers.initial(CONFIG)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state.replace(params=helpers.moved(state.params, scale, seed)), {"eval/loss": 6.0})
    checkpoints.close()
    return workdir


def write_tasks(root):
    """Every task's official folder under one parent for each benchmark, and a folder for each task of the user's."""
    return {
        name: task_files.write_task(root / ("" if TASKS[name].folder else name) / TASKS[name].benchmark, name)
        for name in TASKS
    }


def settings(pretrained, name, folder, **overrides):
    values = recipe.get_config().to_dict()
    values |= {
        "task": name, "init": str(pretrained), "data_dir": str(folder), "max_length": 64, "batch_size": 8, "epochs": 2,
        "learning_rate": 1e-3, "mesh": values["mesh"] | {"data": 1},
    }  # fmt: skip
    return finetune_settings.from_dict(values | overrides)


def run(pretrained, workdir, name, folder, on_step=lambda step: None, **overrides):
    """(result, what it printed)."""
    lines = []
    config = settings(pretrained, name, folder, **overrides)
    return finetune(config, workdir, lines.append, on_step), lines
