"""BERT-large by ScTD on a v5p-8 slice: 4 chips, 64 rows of 512 a chip.

    launch/babysit.sh --name=large --zone=ZONE --type=v5p-8 --spot -- --config=configs/tpu/large_v5p_8.py \
        --config.data.rows=gs://BUCKET/rows --workdir=gs://BUCKET/runs/large

Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that slice and says what memory it takes.
"""

from configs import large

TOPOLOGY = "v5p:2x2x1"


def get_config():
    """The recipe: `configs/large.py`, which recomputes attention on TPUs."""
    return large.get_config()
