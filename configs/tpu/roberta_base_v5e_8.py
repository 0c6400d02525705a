"""RoBERTa-base by ScTD on a v5litepod-8 slice: 8 chips, 32 rows of 512 a chip.

    launch/babysit.sh --name=roberta --zone=ZONE --type=v5litepod-8 --spot -- \
        --config=configs/tpu/roberta_base_v5e_8.py --config.data.rows=gs://BUCKET/rows \
        --workdir=gs://BUCKET/runs/roberta_base

Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that slice and says what memory it takes.
"""

from configs import roberta_base as recipe

TOPOLOGY = "v5e:2x4"


def get_config():
    """The recipe: `configs/roberta_base.py` as it is."""
    return recipe.get_config()
