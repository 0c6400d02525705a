"""XLM-R-base, continued by ScTD on a v5litepod-8 slice: 8 chips, 32 rows of 512 a chip, 250,002 pieces.

    launch/babysit.sh --name=xlmr --zone=ZONE --type=v5litepod-8 --spot -- \
        --config=configs/tpu/xlm_roberta_base_v5e_8.py --config.data.rows=gs://BUCKET/rows \
        --config.train.init=gs://BUCKET/runs/xlmr_imported --workdir=gs://BUCKET/runs/xlmr

The network of FacebookAI/xlm-roberta-base. Never run on one; `python benchmarks/tpu_recipes.py` compiles it for that
slice and says what memory it takes.
"""

from configs import roberta_base as recipe

TOPOLOGY = "v5e:2x4"


def get_config():
    """The recipe: `configs/roberta_base.py` with that network, and as many steps as configs/continued.py."""
    config = recipe.get_config()
    config.model.update(family="xlm-roberta", vocab_size=250_002)
    config.optimizer.update(learning_rate=5e-5, warmup_steps=1_000)
    config.train.steps = 25_000
    return config
