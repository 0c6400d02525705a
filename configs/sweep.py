"""Fine-tuning of one or more checkpoints on several tasks, over learning rates and seeds.

    python -m sctd_jax.main --mode=sweep --config=configs/sweep.py --workdir=runs/sweep \
        --config.inits=runs/full,runs/sctd --config.tasks=cola,mrpc,rte --config.data_dir=glue_data

Interrupted, the same command goes on; a cell that is finished is never run again. The other fields are those of
`configs/finetune.py`. Hardware: as there; BERT-base on all of GLUE is hundreds of runs, and we have measured none: the
tests run small sweeps.
"""

import dataclasses

from configs import finetune
from sctd_jax.finetune.config import SweepConfig


def get_config():
    """The recipe."""
    config = finetune.get_config()
    for name in ("task", "init", "learning_rate", "seed"):
        del config[name]
    config.update(dataclasses.asdict(SweepConfig()))
    return config
