"""An arena of the tests: three methods on `tests/small.py`."""

from ml_collections import ConfigDict

from tests import small


def get_config(rows):
    run = small.get_config()
    run.data.rows = rows
    run.dropping.method = "full"
    run.mesh.data = 1
    run.train.update(steps=300, log_every=100)
    config = ConfigDict()
    config.run, config.baseline = run, "full"
    config.methods = {name: {"dropping": {"method": name}} for name in ("full", "drop", "random")}
    config.step_time = {"full": 1.0, "drop": 0.75, "random": 0.75}
    config.rounds = (
        {"methods": ("full", "drop"), "budgets": (1.0,), "seeds": (0,)},
        {"methods": ("drop", "random"), "budgets": (1.0, 0.5), "seeds": (0, 1)},
    )
    config.evaluations, config.judge_rows = 3, 30
    return config
