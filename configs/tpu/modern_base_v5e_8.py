"""ModernBERT-base by ScTD on a v5litepod-8 slice: 8 chips, 64 rows of 1,024 a chip in microbatches.

    launch/babysit.sh --name=modern --zone=ZONE --type=v5litepod-8 --spot -- \
        --config=configs/tpu/modern_base_v5e_8.py \
        --config.data.rows=gs://BUCKET/rows --workdir=gs://BUCKET/runs/modern_base

Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that slice and says what memory it takes.
"""

from configs.modern import base as recipe

TOPOLOGY = "v5e:2x4"


def get_config():
    """The recipe: `configs/modern/base.py` as it is."""
    return recipe.get_config()
