"""The configuration of a whole run: sizes that follow from it, stages, and checks across its sections.

Letters of docs/method.md: N sequence length, K kept tokens, P predicted tokens, L layers.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from sctd_jax import schedules
from sctd_jax.fields import fill, require
from sctd_jax.sections import (
    CHOOSERS,
    SHORTEST_ROW,
    DataConfig,
    DroppingConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    dropping: DroppingConfig = dataclasses.field(default_factory=DroppingConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def drops(self) -> bool:
        """Whether the method has dropping layers, which see K tokens."""
        return self.dropping.method not in ("full", "late_mask")

    @property
    def drop_layers(self) -> tuple[int, int]:
        """(first, last) dropping layer; (0, 0) where nothing is dropped; twice the layer where late masks enter."""
        first, last = self.dropping.first_layer, self.dropping.last_layer
        layers = self.model.num_layers
        if self.dropping.method == "late_mask":
            first = max(layers - 2, 0) if first < 0 else first
            return first, first
        if not self.drops:
            return 0, 0
        default = 1 if self.dropping.method == "random_ltd" else layers // 2 - 1
        return default if first < 0 else first, layers - 2 if last < 0 else last

    @property
    def num_kept(self) -> int:
        """K, tokens of a row that the dropping layers see."""
        return round(self.data.seq_len * (1 - self.dropping.drop_rate))

    @property
    def kept_by_layer(self) -> tuple[int, ...]:
        """Tokens that come out of each dropping layer: K, and from each layer of `keep_by_layer` on its number."""
        first, last = self.drop_layers
        stages = ((first, self.num_kept), *schedules.parse(self.dropping.keep_by_layer, int))
        return tuple(schedules.value_at(stages, layer) for layer in range(first, last + 1))

    @property
    def keep_stages(self) -> tuple[tuple[int, int], ...]:
        """(first step, K) of each stage of `keep_schedule`, ascending."""
        schedule = self.dropping.keep_schedule
        return schedules.parse(schedule, int) if schedule else ((0, self.num_kept),)

    @property
    def length_stages(self) -> tuple[tuple[int, int], ...]:
        """(first step, N) of each stage of `seq_len_schedule`, ascending."""
        schedule = self.data.seq_len_schedule
        return schedules.parse(schedule, int) if schedule else ((0, self.data.seq_len),)

    @property
    def batch_stages(self) -> tuple[tuple[int, int], ...]:
        """(first step, rows) of each stage of `batch_schedule`, ascending."""
        schedule = self.train.batch_schedule
        return schedules.parse(schedule, int) if schedule else ((0, self.train.batch_size),)

    def at(self, step: int) -> "Config":
        """The config of one step: its stage's K, N and batch, and no schedule but that of the masking rate."""
        dropping, data, train = self.dropping, self.data, self.train
        if not (dropping.keep_schedule or data.seq_len_schedule or train.batch_schedule):
            return self
        length, rows = schedules.value_at(self.length_stages, step), schedules.value_at(self.batch_stages, step)
        if dropping.keep_schedule and self.drops:
            kept = schedules.value_at(self.keep_stages, step)
            dropping = dataclasses.replace(dropping, drop_rate=1 - kept / length)
        # Microbatches stay as large or become smaller, so that each stage fits where the largest does.
        counts = {
            name: -(-getattr(train, name) * rows // train.batch_size)
            for name in ("accumulation", "consistency_accumulation")
        }
        return dataclasses.replace(
            self,
            dropping=dataclasses.replace(dropping, keep_schedule=""),
            data=dataclasses.replace(data, seq_len=length, seq_len_schedule=""),
            train=dataclasses.replace(train, batch_size=rows, batch_schedule="", **counts),
        )

    def after(self, steps: int) -> "Config":
        """The config of an evaluation after so many steps: drop rate of the last one, the other fields of all alike."""
        return dataclasses.replace(
            self,
            dropping=self.at(max(steps - 1, 0)).dropping,
            masking=dataclasses.replace(self.masking, rate_schedule=""),
            data=dataclasses.replace(self.data, seq_len_schedule=""),
            train=dataclasses.replace(self.train, batch_schedule=""),
        )

    def stages(self, until: int) -> tuple[tuple[int, int, "Config"], ...]:
        """(first step, the step after the last, config) of each stage before step `until`."""
        of = [self.length_stages, self.batch_stages, *([self.keep_stages] if self.drops else [])]
        starts = sorted({step for stages in of for step, _ in stages if step < until})
        return tuple((start, end, self.at(start)) for start, end in itertools.pairwise([*starts, until]))

    def rows_before(self, step: int) -> int:
        """Rows of this step's length that the steps before it have read."""
        length = schedules.value_at(self.length_stages, step)
        return sum(
            (end - start) * stage.train.batch_size
            for start, end, stage in self.stages(step)
            if stage.data.seq_len == length
        )

    def batches_of(self, length: int) -> tuple[tuple[int, int], ...]:
        """(first row, rows of a batch) of each stage that reads rows of `length` tokens; the rows are those of all."""
        found, first = [], 0
        for start, end, stage in self.stages(_END):
            if stage.data.seq_len == length:
                found.append((first, stage.train.batch_size))
                first += (end - start) * stage.train.batch_size
        return tuple(found)

    @property
    def rows_folders(self) -> tuple[str, ...]:
        """Folders in `data.rows`: one, or one for each length of a `seq_len_schedule`."""
        return tuple(self.data.rows.split(",")) if self.data.seq_len_schedule else (self.data.rows,)

    @property
    def context_lengths(self) -> tuple[tuple[str, int], ...]:
        """Name and number of context rows of every attention of the run."""
        stages = [
            stage for start, _, stage in self.stages(self.train.steps) for stage in (stage, self.after(start + 1))
        ]
        kept = [("K, the kept tokens,", kept) for stage in stages for kept in stage.kept_by_layer] if self.drops else []
        if self.dropping.method == "late_mask":
            kept = [("N - P, the tokens that are not predicted,", stage.num_visible) for stage in stages]
        return tuple(dict.fromkeys([*(("data.seq_len", stage.data.seq_len) for stage in stages), *kept]))

    @property
    def num_predicted(self) -> int:
        """P, prediction slots of a row: as many as the highest rate of the run asks for."""
        schedule = self.masking.rate_schedule
        rates = [rate for _, rate in schedules.parse(schedule, float)] if schedule else [self.masking.rate]
        return round(self.data.seq_len * max(rates))

    @property
    def num_visible(self) -> int:
        """N - P, tokens of a row that the layers before `first_layer` of late masking see."""
        return self.data.seq_len - self.num_predicted

    @property
    def selector(self) -> str:
        """Key of `SELECTORS` that this method uses."""
        return "random" if self.dropping.method in ("random", "random_ltd") else self.dropping.selector

    @property
    def num_top(self) -> int:
        """Kept tokens that 'importance+random' chooses by importance; the others are random."""
        return self.top_of(self.num_kept)

    def top_of(self, kept: int) -> int:
        """`num_top` of so many kept tokens."""
        return kept - round(kept * self.dropping.random_share)


def from_dict(sections: Mapping[str, Mapping[str, Any]], *, new: bool = True) -> Config:
    """Nested mapping -> Config, after every check but that of the selector, whose registry loads JAX.

    A run's stored one is not `new`: what earlier code took, though it is wrong, still opens.
    """
    config = fill("config", Config, sections, new=new)
    _check_schedules(config)
    for stage in (config, *(stage for *_, stage in config.stages(_END))):
        _check_rows(stage)
    if config.drops:
        _check_dropping(config)
    if config.dropping.method == "late_mask":
        _check_late_mask(config)
    _check_train(config)
    return config


_END = 1 << 62  # after the last step of any run


def _check_schedules(config: Config) -> None:
    """Check each schedule, and that the value of the field that it changes, which evaluations have, fits it."""
    dropping, masking, data, train = config.dropping, config.masking, config.data, config.train
    if dropping.keep_schedule and config.drops:
        schedules.check("dropping.keep_schedule", dropping.keep_schedule, "K", int)
    if schedule := masking.rate_schedule:
        schedules.check("masking.rate_schedule", schedule, "RATE", float)
        rates = [rate for _, rate in schedules.parse(schedule, float)]
        has = all(0 < rate < 1 for rate in rates) and masking.rate <= max(rates)
        said = (
            f"must have rates between 0 and 1, one of them at least masking.rate ({masking.rate}), found {schedule!r}"
        )
        require(has, "masking.rate_schedule", said)
    for name, schedule, what, least, most in (
        ("data.seq_len", data.seq_len_schedule, "N", SHORTEST_ROW, data.seq_len),
        ("train.batch_size", train.batch_schedule, "ROWS", 1, train.batch_size),
    ):
        if not schedule:
            continue
        field = {"N": "data.seq_len_schedule", "ROWS": "train.batch_schedule"}[what]
        schedules.check(field, schedule, what, int)
        values = [value for _, value in schedules.parse(schedule, int)]
        said = f"must have numbers from {least} on, the largest of them {name} ({most}), found {schedule!r}"
        require(least <= min(values) and max(values) == most, field, said)


def _check_rows(config: Config) -> None:
    length, most = config.data.seq_len, config.model.max_positions
    width, heads = config.model.hidden_size, config.model.num_heads
    masking, predicted = config.masking, config.num_predicted
    require(width % heads == 0, "model.num_heads", f"must divide model.hidden_size ({width}), found {heads}")
    require(length <= most, "data.seq_len", f"({length}) must not exceed model.max_positions ({most})")
    require(
        masking.mask_share + masking.random_share <= 1,
        "masking.mask_share",
        f"({masking.mask_share}) and masking.random_share ({masking.random_share}) must not exceed 1 together",
    )
    require(
        1 <= predicted <= length - 2,
        "masking.rate",
        f"{masking.rate} of data.seq_len ({length}) is {predicted} predictions a row; 1 to {length - 2} are possible",
    )


def _check_dropping(config: Config) -> None:
    dropping, layers = config.dropping, config.model.num_layers
    require(layers >= 4, "model.num_layers", f"must be at least 4 to drop tokens, found {layers}")
    first, last = config.drop_layers
    require(
        0 <= first <= last <= layers - 2,
        "dropping.first_layer",
        f"and last_layer must be in order and before the last layer (0 <= first <= last <= {layers - 2}), "
        f"found {first} and {last}",
    )
    if dropping.keep_by_layer:
        _check_keep_by_layer(config)
    name = "keep_schedule" if dropping.keep_schedule else "drop_rate"
    for stage in [config, *(stage for *_, stage in config.stages(_END))]:
        length = stage.data.seq_len
        require(
            stage.num_predicted + 2 <= stage.num_kept <= length,
            f"dropping.{name}",
            f"{getattr(dropping, name)} keeps K = {stage.num_kept} of N = {length} tokens, but [CLS], [SEP] "
            f"and P = {stage.num_predicted} masked positions need {stage.num_predicted + 2}: change it or lower "
            "masking.rate",
        )
    require(
        config.selector != "importance+random" or config.num_predicted + 2 <= config.num_top,
        "dropping.random_share",
        f"{dropping.random_share} leaves {config.num_top} tokens to importance, but [CLS], [SEP] and "
        f"P = {config.num_predicted} masked positions need {config.num_predicted + 2}: lower it",
    )


def _check_keep_by_layer(config: Config) -> None:
    dropping, (first, last) = config.dropping, config.drop_layers
    require(
        dropping.method in CHOOSERS,
        "dropping.keep_by_layer",
        f"is for the methods {', '.join(CHOOSERS[:-1])} and {CHOOSERS[-1]}, found {dropping.method}: set it to ''",
    )
    other = "dropping.keep_schedule" if dropping.keep_schedule else "data.seq_len_schedule"
    schedule = dropping.keep_schedule or config.data.seq_len_schedule
    require(not schedule, "dropping.keep_by_layer", f"does not go with {other} ({schedule}): set one of them alone")
    whole = re.fullmatch("[0-9]{1,5}:[0-9]{1,9}(,[0-9]{1,5}:[0-9]{1,9})*", dropping.keep_by_layer)
    stages = schedules.parse(dropping.keep_by_layer, int) if whole else ()
    layers, counts = [layer for layer, _ in stages], [config.num_kept, *(kept for _, kept in stages)]
    least = config.num_predicted + 2
    good = all(a < b for a, b in itertools.pairwise([first, *layers, last + 1]))
    good = good and all(a > b for a, b in itertools.pairwise(counts)) and counts[-1] >= least
    require(
        bool(whole) and good,
        "dropping.keep_by_layer",
        f"must be LAYER:K,LAYER:K,... with ascending layers from {first + 1} to {last} and falling K below "
        f"{config.num_kept}, at least {least} ([CLS], [SEP] and P = {config.num_predicted} masked positions), found "
        f"{dropping.keep_by_layer!r}",
    )


def _check_late_mask(config: Config) -> None:
    first, layers = config.drop_layers[0], config.model.num_layers
    require(
        first < layers,
        "dropping.first_layer",
        f"must be a layer at which masked tokens enter (0 to {layers - 1}), found {first}",
    )
    schedule = config.masking.rate_schedule
    require(
        not schedule or len({rate for _, rate in schedules.parse(schedule, float)}) == 1,
        "masking.rate_schedule",
        f"({schedule}) does not go with dropping.method=late_mask, whose first layers have room for N - P tokens, P by "
        "the highest rate: give one rate",
    )


def _check_train(config: Config) -> None:
    train, dropping, optimizer = config.train, config.dropping, config.optimizer
    require(
        not optimizer.decay_steps or optimizer.schedule == "wsd",
        "optimizer.decay_steps",
        f"({optimizer.decay_steps}) belongs to the schedule wsd, found {optimizer.schedule}: set it to 0",
    )
    require(
        optimizer.decay_steps <= train.steps,
        "optimizer.decay_steps",
        f"({optimizer.decay_steps}) must not exceed train.steps ({train.steps})",
    )
    for name, default in (("init_step", -1), ("init_takes", "params")):
        value = getattr(train, name)
        require(bool(train.init) or value == default, f"train.{name}", f"({value}) wants a workdir as train.init")
    for name, variant in (("accumulation", "drop"), ("consistency_accumulation", "consistency")):
        count = train.microbatches(variant)
        require(
            train.batch_size % count == 0,
            "train.batch_size",
            f"({train.batch_size}) must be divisible by train.{name} ({count})",
        )
        for *_, stage in config.stages(_END):
            rows, parts = stage.train.batch_size, stage.train.microbatches(variant)
            require(
                rows % parts == 0,
                "train.batch_schedule",
                f"has {rows} rows, which {parts} microbatches of at most {train.batch_size // count} do not divide",
            )
    require(
        train.checkpoint_every % train.eval_every == 0,
        "train.checkpoint_every",
        f"({train.checkpoint_every}) must be a multiple of train.eval_every ({train.eval_every}), so that each "
        "checkpoint has a held-out loss",
    )
    require(
        dropping.full_steps_first + dropping.full_steps_last <= train.steps,
        "dropping.full_steps_first",
        f"({dropping.full_steps_first}) and full_steps_last ({dropping.full_steps_last}) must not exceed "
        f"train.steps ({train.steps}) together",
    )
