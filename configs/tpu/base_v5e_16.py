"""BERT-base by ScTD on a v5litepod-16 slice: 16 chips, 16 rows of 512 a chip.

    launch/babysit.sh --name=base --zone=ZONE --type=v5litepod-16 --spot -- --config=configs/tpu/base_v5e_16.py \
        --config.data.rows=gs://BUCKET/rows --workdir=gs://BUCKET/runs/base

Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that slice and says what memory it takes.
"""

from configs import base

TOPOLOGY = "v5e:4x4"


def get_config():
    """The recipe: `configs/base.py` with nothing recomputed."""
    config = base.get_config()
    # Memory is enough to keep attention's probabilities for the backward pass.
    config.model.remat = "none"
    return config
