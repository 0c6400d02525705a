"""BERT-base by ScTD on a v5litepod-4 slice: 4 chips, 64 rows of 512 a chip.

    launch/babysit.sh --name=base --zone=ZONE --type=v5litepod-4 --spot -- --config=configs/tpu/base_v5e_4.py \
        --config.data.rows=gs://BUCKET/rows --workdir=gs://BUCKET/runs/base

Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that slice and says what memory it takes.
"""

from configs import base

TOPOLOGY = "v5e:2x2"


def get_config():
    """The recipe: `configs/base.py`, which recomputes attention on TPUs."""
    return base.get_config()
