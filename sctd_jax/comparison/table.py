"""The table of an arena: method x budget x seed, each cell a pretraining of its own.

A budget is a share of the *reference time* of the baseline's full run (Kaddour et al., 2023, arXiv:2307.06440): a
method whose step takes 0.8 of the baseline's has 1 / 0.8 times as many steps. So nothing but step times that were
measured once on an idle machine decides how long a cell trains, whatever else its own machine does meanwhile.
"""

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sctd_jax import schedules
from sctd_jax.config import Config, from_dict
from sctd_jax.errors import UserError
from sctd_jax.fields import LARGEST_SEED

# Fields of a run whose numbers of steps grow with the steps of a cell.
_SCHEDULES = {
    ("dropping", "keep_schedule"): int, ("masking", "rate_schedule"): float, ("data", "seq_len_schedule"): int,
    ("train", "batch_schedule"): int,
}  # fmt: skip
_COUNTS = (("dropping", "full_steps_first"), ("dropping", "full_steps_last"), ("optimizer", "decay_steps"))

_JUDGED = ("masking", "data")  # sections that evaluations read, but for their schedules


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Fields of a recipe in configs/arena: a ConfigDict of these names."""

    run: Mapping[str, Any]  # sections of the baseline's run at budget 1
    baseline: str  # the method that the others are held against
    methods: Mapping[str, Any]  # name -> fields in which its run differs, by section
    step_time: Mapping[str, float]  # name -> mean time of a step in units of the baseline's
    # Cells in the order in which they are run; each `{"methods": (...), "budgets": (...), "seeds": (...)}`.
    rounds: tuple[Mapping[str, Any], ...]
    evaluations: int  # a cell's, evenly over its steps
    judge_rows: int  # held-out rows on which a cell's last parameters are judged


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the table."""

    method: str
    budget: float  # share of the baseline's reference time
    seed: int
    step_time: float  # mean time of the method's step, in units of the baseline's
    config: Config

    @property
    def name(self) -> str:
        """The name of its workdir."""
        return f"{self.method}-{self.budget:g}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Table:
    """All cells, in the order in which they are run."""

    baseline: str
    cells: tuple[Cell, ...]
    judge_rows: int


def read_table(values: Mapping[str, Any], step_time: Mapping[str, float] | None = None) -> Table:
    """A recipe's fields, as plain dicts, -> its table; `step_time` takes the place of the recipe's.

    Every cell's config is checked here, before the first one runs.
    """
    names = [field.name for field in dataclasses.fields(Recipe)]
    if missing := [name for name in names if name not in values] + [name for name in values if name not in names]:
        raise UserError(f"a recipe of an arena has the fields {', '.join(names)}; look at {', '.join(missing)}")
    recipe = Recipe(**values)
    _check_recipe(recipe)
    times = recipe.step_time if step_time is None else step_time
    if not isinstance(times, Mapping):
        raise UserError(f"step_time must be a table of methods and numbers, found {times!r:.80}")
    if times.get(recipe.baseline) != 1.0:
        raise UserError(
            f"step_time of the baseline {recipe.baseline} is {times.get(recipe.baseline)}, expected 1: the others are "
            "in its units"
        )
    cells = {}
    for number, round_ in enumerate(recipe.rounds, start=1):
        for budget, seed, method in _cells_of(round_, f"round {number}"):
            where = f"round {number}: method {method}"
            if method not in recipe.methods:
                raise UserError(f"{where} is not among the methods ({', '.join(recipe.methods)})")
            if not isinstance(times.get(method), int | float) or not 0 < times[method] < 100:
                raise UserError(
                    f"{where} has no step_time that can be used (found {times.get(method)!r}): measure it on an idle "
                    "machine by benchmarks/train_step.py --arena"
                )
            cell = _cell(recipe, method, float(budget), int(seed), float(times[method]))
            cells.setdefault(cell.name, cell)
    if not cells:
        raise UserError("the recipe's rounds have no cell")
    return Table(recipe.baseline, tuple(cells.values()), recipe.judge_rows)


def _check_recipe(recipe: Recipe) -> None:
    """Types, and names that become those of folders."""
    for name, value, kind in (
        ("run", recipe.run, Mapping), ("methods", recipe.methods, Mapping), ("rounds", recipe.rounds, list | tuple),
        ("baseline", recipe.baseline, str), ("evaluations", recipe.evaluations, int),
        ("judge_rows", recipe.judge_rows, int),
    ):  # fmt: skip
        if not isinstance(value, kind) or (kind is int and not 0 < value < 1 << 31):
            expected = {Mapping: "a table", str: "a text", int: "a whole number from 1 on"}.get(kind, "a list")
            raise UserError(f"{name} of an arena's recipe must be {expected}, found {value!r:.80}")
    for name, sections in recipe.methods.items():
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"method {name!r:.80}: letters, digits, and . + - _ are allowed, for folders are named so")
        if not isinstance(sections, Mapping) or not all(isinstance(fields, Mapping) for fields in sections.values()):
            raise UserError(f"method {name} must be a table of sections with fields, found {sections!r:.80}")
    from_dict(recipe.run)


def _cells_of(round_: Mapping[str, Any], where: str) -> Iterator[tuple[float, int, str]]:
    """(budget, seed, method), seeds before methods: a table that is cut off has as many cells of each method."""
    if not isinstance(round_, Mapping) or set(round_) != {"methods", "budgets", "seeds"}:
        found = ", ".join(map(str, round_)) if isinstance(round_, Mapping) else f"{round_!r:.80}"
        raise UserError(f"{where} must have methods, budgets and seeds, found {found or 'nothing'}")
    for name, values in round_.items():
        if not isinstance(values, list | tuple):
            raise UserError(f"{where}: {name} must be a list, found {values!r:.80}")
    for budget in round_["budgets"]:
        if not isinstance(budget, int | float) or not 0 < budget <= 10:
            raise UserError(f"{where}: a budget is a share of the baseline's time, such as 0.5; found {budget!r}")
        for seed in round_["seeds"]:
            if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
                raise UserError(f"{where}: a seed is a whole number from 0 to {LARGEST_SEED}, found {seed!r:.80}")
            for method in round_["methods"]:
                yield budget, seed, method


def _cell(recipe: Recipe, method: str, budget: float, seed: int, step_time: float) -> Cell:
    sections = copy.deepcopy({name: dict(fields) for name, fields in recipe.run.items()})
    for name, fields in recipe.methods[method].items():
        unknown = [field for field in fields if field not in sections.get(name, {})]
        if unknown or name not in sections:
            raise UserError(f"method {method}: the run has no {name}.{(unknown or ['...'])[0]}")
        for field, value in fields.items():
            of_the_run = recipe.run[name][field]
            if name in _JUDGED and not field.endswith("_schedule") and value != of_the_run:
                raise UserError(
                    f"method {method}: {name}.{field} is {value!r} and {of_the_run!r} in the run, but all are judged "
                    "on the same rows under the same masks: let it train otherwise by masking.rate_schedule or "
                    "data.seq_len_schedule"
                )
        sections[name] |= fields
    whole = sections["train"]["steps"]
    steps = max(round(whole * budget / step_time), 1)
    for (section, field), kind in _SCHEDULES.items():
        if schedule := sections[section][field]:
            stages = schedules.parse(schedule, kind)
            sections[section][field] = ",".join(f"{start * steps // whole}:{value}" for start, value in stages)
    for section, field in _COUNTS:
        sections[section][field] = sections[section][field] * steps // whole
    every = -(-steps // recipe.evaluations)
    sections["train"] |= {
        "steps": steps, "seed": seed, "eval_every": every, "checkpoint_every": every, "keep_checkpoints": 1,
    }  # fmt: skip
    config = from_dict(sections)
    optimizer = config.optimizer
    if optimizer.schedule == "wsd" and not optimizer.decay_steps:
        raise UserError(
            f"method {method}: with optimizer.schedule wsd and decay_steps 0 the learning rate never falls, and a run "
            "whose rate has not fallen is compared with nothing: give decay_steps"
        )
    return Cell(method, budget, seed, step_time, config)
