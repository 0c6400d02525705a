"""Values that change during a run at steps that the config names: 'STEP:VALUE,STEP:VALUE,...' from step 0 on.

One text is one value of one flag and of one field of `config.json`, and reads in the order in which a run meets it.
"""

import re
from typing import Any

from sctd_jax.fields import require

MOST = 6  # values of a schedule: most of them are a program of their own


def parse(schedule: str, kind: type) -> tuple[tuple[int, Any], ...]:
    """(first step, value) of each stage, ascending, of a schedule that `check` has seen; of '' there is none."""
    pairs = (part.split(":") for part in schedule.split(",") if part)
    return tuple((int(step), kind(value)) for step, value in pairs)


def value_at(stages: tuple[tuple[int, Any], ...], step: int) -> Any:
    """The value of the last stage that has begun at a step."""
    return [value for first, value in stages if first <= step][-1]


def beyond(field: str, schedule: str, steps: int) -> list[str]:
    """A line where stages of a schedule begin after the last step of the run."""
    late = [part for part in schedule.split(",") if part and int(part.split(":")[0]) >= steps]
    return [f"{field}: {','.join(late)} begins after the last step, {steps}"] if late else []


def check(field: str, schedule: str, what: str, kind: type) -> None:
    """Refuse a text that is no schedule; `what` names its values in the message."""
    value = "[0-9]{1,10}" if kind is int else r"[0-9]{0,10}\.?[0-9]{1,20}"
    whole = re.fullmatch(rf"0:{value}(,[0-9]{{1,10}}:{value}){{0,{MOST - 1}}}", schedule)
    starts = [step for step, _ in parse(schedule, kind)] if whole else []
    require(
        bool(starts) and starts == sorted(set(starts)),
        field,
        f"must be STEP:{what},STEP:{what},... with at most {MOST} ascending steps from 0 on, found {schedule!r:.80}",
    )
