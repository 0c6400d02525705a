import ast
import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from typing import get_args

import pytest

from sctd_jax import config as config_module
from sctd_jax import schedules, sections
from sctd_jax.config import Config, from_dict
from sctd_jax.errors import UserError
from sctd_jax.fields import rerun_fields, unread
from sctd_jax.model.token_dropping import SELECTORS
from sctd_jax.pretrain import report
from sctd_jax.pretrain.pretraining import train_and_evaluate
from tests import helpers, small

# Those of fine-tuning have fields of their own, and tests in test_finetune.py and test_sweep.py.
_OTHERS = ("__init__", "finetune", "predict", "sweep")
CONFIGS = sorted(
    path
    for path in (helpers.ROOT / "configs").rglob("*.py")
    if path.stem not in _OTHERS and path.parent.name != "arena"  # those have theirs in test_arena.py
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_passes_its_checks(path, tmp_path):
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = []
    if path.stem == "continued":  # starts from a workdir
        model = dataclasses.asdict(helpers.config(model__max_positions=40).model)
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
        (tmp_path / "tokenizer.json").touch()
        arguments = [str(tmp_path)]
    config = from_dict(module.get_config(*arguments).to_dict())
    assert isinstance(config, Config)
    if arguments:
        assert dataclasses.asdict(config.model) == model
        assert (config.train.init, config.data.tokenizer) == (str(tmp_path), str(tmp_path / "tokenizer.json"))
        assert config.data.seq_len == 40
    assert f"--config=configs/{path.relative_to(helpers.ROOT / 'configs')}" in module.__doc__


def test_numbers_that_earlier_code_took_still_open_where_a_run_has_stored_them():
    values = dataclasses.asdict(helpers.config())
    values["optimizer"]["clip_norm"] = math.inf  # no clipping, which is allowed
    values["train"]["seed"] = 2**32 - 1
    from_dict(values)
    values["train"] |= {"seed": 2**40, "keep_checkpoints": 10**12}
    values["dropping"] |= {"first_layer": -7, "importance_init": -5.0, "sc_weight": math.inf}
    assert from_dict(values, new=False).train.seed == 2**40
    with pytest.raises(UserError, match=r"config.dropping.first_layer must be a layer from 0 on, or -1, found -7"):
        from_dict(values)


def test_stages_after_the_end_are_said():
    found = schedules.beyond("config.dropping.keep_schedule", "0:16,6:20,9:24", 6)
    assert found == ["config.dropping.keep_schedule: 6:20,9:24 begins after the last step, 6"]
    assert schedules.beyond("x", "0:16,5:20", 6) == schedules.beyond("x", "", 6) == []


def attributes_read(tree):
    """(name of what is asked, attribute): `config.dropping.method` gives ("dropping", "method")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            yield getattr(node.value, "attr", None) or node.value.id, node.attr


def test_every_field_is_read_somewhere():
    """Outside of the checks, `section.field` is read, or `config.field` where `config` is that section."""
    read = set()
    for path in Path(config_module.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if str(path) in (
            config_module.__file__,
            sections.__file__,
        ):  # only the derived sizes count as reading, not the checks
            for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
                read |= {(node.name if owner == "self" else owner, name) for owner, name in attributes_read(node)}
        else:
            read |= set(attributes_read(tree))
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.type):
            uses = {(owner, field.name) for owner in (section.name, section.type.__name__, "config")} & read
            assert uses, f"{section.name}.{field.name} is never read"


def test_what_a_rerun_may_change():
    assert rerun_fields(Config) == {
        "data.allow_unknown", "data.cache_gb", "data.documents", "data.encoding", "data.input", "data.prepared_dir",
        "data.rows", "data.text_field", "data.tokenizer", "mesh", "mesh.data", "mesh.fsdp", "mesh.tensor",
        "model.attention",
        "model.remat", "optimizer.decay_shape", "optimizer.decay_steps", "optimizer.learning_rate",
        "optimizer.warmup_steps", "train.accumulation", "train.checkpoint_every", "train.consistency_accumulation",
        "train.eval_every", "train.eval_rows", "train.init", "train.init_step", "train.init_takes",
        "train.keep_checkpoints", "train.log_every", "train.max_bad_steps", "train.steps", "train.track",
    }  # fmt: skip


def test_a_selector_is_looked_up_before_a_run_begins(tmp_path):
    config = helpers.config(dropping__selector="best")
    assert helpers.config(dropping__selector="importance+random").selector in SELECTORS
    with pytest.raises(UserError, match=r"config.dropping.selector must be one of importance, .*; found 'best'"):
        train_and_evaluate(config, tmp_path / "run", print)
    assert not (tmp_path / "run" / "config.json").exists()


def test_derived_sizes():
    config = helpers.config()
    assert (config.num_kept, config.num_predicted, config.drop_layers) == (16, 5, (1, 2))
    bert = helpers.config(model__num_layers=12, model__max_positions=512, data__seq_len=512)
    assert (bert.num_kept, bert.num_predicted, bert.drop_layers) == (256, 77, (5, 10))
    chosen = helpers.config(model__num_layers=12, dropping__first_layer=2, dropping__last_layer=7)
    assert chosen.drop_layers == (2, 7)
    # random-LTD drops in all layers but the first and the last.
    assert helpers.config(model__num_layers=12, dropping__method="random_ltd").drop_layers == (1, 10)


def test_the_kept_tokens_of_a_step_follow_the_schedule():
    config = helpers.config(dropping__keep_schedule="0:12,10:20,30:32")
    assert config.keep_stages == ((0, 12), (10, 20), (30, 32))
    assert [config.at(step).num_kept for step in (0, 9, 10, 29, 30, 10_000)] == [12, 12, 20, 20, 32, 32]
    assert config.num_kept == 16  # K of the evaluation, so that its curve does not jump
    plain = helpers.config()
    assert plain.keep_stages == ((0, 16),)
    assert plain.at(7) is plain


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__num_heads": 5}, ["model.num_heads", "hidden_size (32)", "found 5"]),
        ({"model__num_layers": 3}, ["model.num_layers", "at least 4", "found 3"]),
        ({"model__vocab_size": 0}, ["model.vocab_size", "found 0"]),
        ({"model__hidden_dropout": 1.0}, ["model.hidden_dropout", "1.0"]),
        ({"model__dtype": "float16"}, ["model.dtype", "float32, bfloat16", "'float16'"]),
        ({"data__seq_len": 64}, ["data.seq_len", "(64)", "max_positions (32)"]),
        ({"dropping__drop_rate": 0.9}, ["dropping.drop_rate", "K = 3", "P = 5", "need 7"]),
        ({"dropping__keep_schedule": "0:6"}, ["dropping.keep_schedule", "K = 6", "P = 5", "need 7"]),
        ({"dropping__keep_schedule": "0:16,5:33"}, ["dropping.keep_schedule", "K = 33", "N = 32"]),
        ({"dropping__keep_schedule": "1:16"}, ["dropping.keep_schedule", "STEP:K", "from 0 on", "'1:16'"]),
        ({"dropping__keep_schedule": "0:16,9:20,9:24"}, ["dropping.keep_schedule", "ascending"]),
        ({"dropping__keep_schedule": "0:\uff11\uff16"}, ["dropping.keep_schedule", "STEP:K"]),
        ({"dropping__importance_init": math.inf}, ["dropping.importance_init", "a finite number, found inf"]),
        ({"dropping__importance_init": math.nan}, ["dropping.importance_init", "a finite number, found nan"]),
        ({"dropping__importance_init": -5.0}, ["dropping.importance_init", "must not be negative, found -5.0"]),
        ({"dropping__sc_weight": math.inf}, ["dropping.sc_weight", "a finite number, found inf"]),
        ({"optimizer__clip_norm": math.nan}, ["optimizer.clip_norm", "a finite number, found nan"]),
        ({"dropping__first_layer": -7}, ["dropping.first_layer", "a layer from 0 on, or -1, found -7"]),
        ({"dropping__last_layer": -2}, ["dropping.last_layer", "a layer from 0 on, or -1, found -2"]),
        ({"train__eval_rows": 10**12}, ["train.eval_rows", "at most 2147483647, found 1000000000000"]),
        ({"train__steps": 2**31}, ["train.steps", "at most 2147483647"]),
        ({"train__batch_size": 10**18}, ["train.batch_size", "at most 2147483647"]),
        ({"train__seed": 2**32}, ["train.seed", "at most 4294967295, found 4294967296"]),
        ({"data__seed": 2**63}, ["data.seed", "at most 4294967295"]),
        ({"dropping__keep_schedule": "0:16;9:20"}, ["dropping.keep_schedule", "'0:16;9:20'"]),
        ({"dropping__keep_schedule": ",".join(f"{i}:16" for i in range(7))}, ["at most 6 ascending steps"]),
        ({"masking__rate_schedule": "0:0.3,2:x"}, ["masking.rate_schedule", "STEP:RATE,STEP:RATE", "'0:0.3,2:x'"]),
        ({"masking__rate_schedule": "0:0.1"}, ["masking.rate_schedule", "at least masking.rate (0.15)"]),
        ({"masking__rate_schedule": "0:1.5,2:0.15"}, ["masking.rate_schedule", "between 0 and 1"]),
        ({"masking__rate_schedule": "0:0.6,2:0.15"}, ["dropping.drop_rate", "K = 16", "P = 19", "masking.rate"]),
        ({"data__seq_len_schedule": "16:0,32:3"}, ["data.seq_len_schedule", "STEP:N", "'16:0,32:3'"]),
        ({"data__seq_len_schedule": "0:16,3:64"}, ["data.seq_len_schedule", "data.seq_len (32)", "'0:16,3:64'"]),
        ({"data__seq_len_schedule": "0:4,3:32"}, ["data.seq_len_schedule", "from 8 on"]),
        (
            {"data__seq_len_schedule": "0:16,3:32", "dropping__keep_schedule": "0:20"},
            ["dropping.keep_schedule", "K = 20 of N = 16"],
        ),
        ({"train__batch_schedule": "0:4,2:16"}, ["train.batch_schedule", "train.batch_size (8)"]),
        ({"train__batch_schedule": "2:4,0:8"}, ["train.batch_schedule", "STEP:ROWS", "from 0 on"]),
        (
            {"train__batch_schedule": "0:7,2:8", "train__accumulation": 2},
            ["train.batch_schedule", "7 rows", "2 microbatches of at most 4"],
        ),
        ({"dropping__method": "dropp"}, ["dropping.method", "full, drop, sctd, random"]),
        (
            {"dropping__selector": "importance+random", "dropping__random_share": 0.7},
            ["dropping.random_share", "leaves 5 tokens", "need 7"],
        ),
        ({"dropping__first_layer": 2, "dropping__last_layer": 1}, ["dropping.first_layer", "found 2 and 1"]),
        ({"dropping__last_layer": 3}, ["dropping.first_layer", "found 1 and 3"]),
        ({"dropping__sc_interval": 0}, ["dropping.sc_interval", "found 0"]),
        ({"dropping__full_steps_first": 7}, ["dropping.full_steps_first", "(7)", "train.steps (6)"]),
        ({"masking__rate": 0.0}, ["masking.rate", "found 0.0"]),
        ({"masking__mask_share": 0.95}, ["masking.mask_share", "(0.95)", "(0.1)"]),
        ({"train__accumulation": 3}, ["train.batch_size", "(8)", "train.accumulation (3)"]),
        ({"train__consistency_accumulation": 3}, ["train.batch_size", "(8)", "consistency_accumulation (3)"]),
        ({"train__checkpoint_every": 4}, ["train.checkpoint_every", "(4)", "train.eval_every (3)"]),
        ({"train__steps": "many"}, ["train.steps", "int", "'many'"]),
        ({"optimizer__eps": 0.0}, ["optimizer.eps", "positive"]),
        ({"optimizer__decay_steps": 2}, ["optimizer.decay_steps", "(2)", "wsd", "linear"]),
        (
            {"optimizer__schedule": "wsd", "optimizer__decay_steps": 7},
            ["optimizer.decay_steps", "(7)", "train.steps (6)"],
        ),
        ({"optimizer__name": "sgd"}, ["optimizer.name", "adamw, lamb, muon, stable_adamw"]),
        ({"train__init_step": 3}, ["train.init_step", "(3)", "train.init"]),
        ({"train__init_takes": "state"}, ["train.init_takes", "(state)", "train.init"]),
        ({"mesh__data": 0}, ["mesh.data", "found 0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_config_is_refused_by_name(overrides, words):
    with pytest.raises(UserError) as error:
        helpers.config(**overrides)
    for word in ["config.", *words]:
        assert word in str(error.value)


def test_full_training_needs_no_room_for_dropping():
    config = helpers.config(
        dropping__method="full", model__num_layers=1, dropping__drop_rate=0.9, dropping__first_layer=9
    )
    assert config.drop_layers == (0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["model"].update(widht=3), ["config.model.widht is unknown", "hidden_size"]),
        (lambda d: d["train"].pop("steps"), ["config.train.steps is missing"]),
        (lambda d: d.update(trian={}), ["config.trian is unknown"]),
        (lambda d: d.pop("mesh"), ["config.mesh is missing"]),
        (lambda d: d.update(mesh=3), ["config.mesh must be a section"]),
        (lambda d: d["train"].update(steps=2.5), ["config.train.steps", "int", "2.5"]),
        (lambda d: d["train"].update(steps=True), ["config.train.steps", "int", "True"]),
    ],
)
def test_unknown_missing_and_mistyped_fields_are_named(change, words):
    values = small.get_config().to_dict()
    change(values)
    with pytest.raises(UserError) as error:
        from_dict(values)
    for word in words:
        assert word in str(error.value)


def test_an_int_is_taken_for_a_float():
    assert helpers.config(optimizer__clip_norm=1).optimizer.clip_norm == 1.0


def test_the_start_table_says_that_a_consistency_step_lacks_the_full_passs_mlm_term():
    said = [report.method(helpers.config(dropping__sc_full_mlm=full).dropping) for full in (True, False)]
    assert said[1] == said[0] + ", without the full pass's MLM term"


def test_what_is_set_and_not_read_is_said():
    changes = {"optimizer__muon_beta": 0.9, "optimizer__decay_shape": "linear", "dropping__sc_weight": 0.1}
    changes |= {"dropping__sc_interval": 10}
    config = helpers.config(**changes, dropping__method="drop")
    assert unread("config", config) == [
        "config.dropping.sc_weight (0.1) is not used: config.dropping.method is drop, and only sctd reads it",
        "config.optimizer.decay_shape (linear) is not used: config.optimizer.schedule is linear, and only wsd reads it",
        "config.optimizer.muon_beta (0.9) is not used: config.optimizer.name is adamw, and only muon reads it",
    ]
    used = {"dropping__method": "sctd", "optimizer__name": "muon", "optimizer__schedule": "wsd"}
    assert unread("config", helpers.config(**changes, **used)) == []


def test_a_rate_that_never_comes_to_its_peak_is_said():
    assert report.without_peak(helpers.config(train__steps=8, optimizer__warmup_steps=8)) == []
    (line,) = report.without_peak(helpers.config(train__steps=8, optimizer__warmup_steps=9))
    assert "the run has 8 steps, fewer than optimizer.warmup_steps (9)" in line
    wsd = {"optimizer__schedule": "wsd", "optimizer__decay_steps": 5}
    (line,) = report.without_peak(helpers.config(train__steps=8, optimizer__warmup_steps=4, **wsd))
    assert line.endswith("optimizer.warmup_steps (4) and optimizer.decay_steps (5)")
    for section in dataclasses.fields(Config):
        fields = {field.name: field for field in dataclasses.fields(section.type)}
        for name, *values in (field.metadata["only"] for field in fields.values() if field.metadata["only"]):
            known = get_args(fields[name].type) or SELECTORS
            assert set(values) < set(known)


def test_a_part_of_the_method_that_does_nothing_is_said():
    assert report.without_effect(helpers.config()) == []
    assert report.without_effect(helpers.config(dropping__method="drop", dropping__sc_weight=0.0)) == []
    for field, value in (
        ("optimizer.learning_rate", 0.0), ("dropping.sc_weight", 0.0), ("dropping.sc_interval", 6),
        ("dropping.importance_beta", 1.0),
    ):  # fmt: skip
        (line,) = report.without_effect(helpers.config(**{field.replace(".", "__"): value}))
        assert line.startswith(f"warning: config.{field} is "), line
    (line,) = report.without_effect(helpers.config(masking__mask_share=0.0, masking__random_share=0.0))
    assert "every token that is to be predicted is shown" in line
