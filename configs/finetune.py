"""Fine-tuning on a task of GLUE, SuperGLUE, SQuAD, SWAG or on your own labels.

    python -m sctd_jax.main --mode=finetune --config=configs/finetune.py \
        --config.task=boolq --config.init=runs/base --config.data_dir=SuperGLUE

What each field means is told by `--help`; 0 stands for the task's own value, which is in
`sctd_jax/tasks/`. Hardware: a laptop CPU for small models and tasks, TPUs or GPUs for the others, where
`--config.dtype=bfloat16` is faster. Measured on two CPU cores, from the weights of MiniLM (README, with the commands):
Rotten Tomatoes 0.841 in five minutes, median of three seeds.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "task": "",
            "init": "",
            "random_init": False,
            "data_dir": "",
            "text_field": "text",
            "pair_field": "",
            "label_field": "label",
            "heldout_share": 0.1,
            "max_length": 0,
            "epochs": 0,
            "batch_size": 0,
            "accumulation": 1,
            "learning_rate": 0.0,
            "warmup_share": 0.1,
            "weight_decay": 0.01,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.1,
            "evaluations": 1,
            "keep_checkpoints": 1,
            "log_every": 20,
            "seed": 0,
            "dtype": "float32",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )
