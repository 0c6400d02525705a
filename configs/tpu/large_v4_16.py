"""BERT-large by ScTD on a v4-16 slice: 8 chips, 32 rows of 512 a chip.

    launch/babysit.sh --name=large --zone=ZONE --type=v4-16 --spot -- --config=configs/tpu/large_v4_16.py \
        --config.data.rows=gs://BUCKET/rows --workdir=gs://BUCKET/runs/large

Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that slice and says what memory it takes.
"""

from configs import large

TOPOLOGY = "v4:2x2x2"


def get_config():
    """The recipe: `configs/large.py`, which recomputes attention on TPUs."""
    return large.get_config()
