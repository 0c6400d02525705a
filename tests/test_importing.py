"""BERT checkpoints as they are found in the wild -> a workdir, or one message and nothing written."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sctd_jax.data import prepare, tokenizer
from sctd_jax.errors import UserError
from sctd_jax.interop import bert_config, huggingface, importing, weights
from sctd_jax.train.loop import train_and_evaluate
from sctd_jax.train.run import load_run
from sctd_jax.train.state import initial_state
from tests import helpers, small

PIECES = ["[PAD]", *(f"[unused{i}]" for i in range(20)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *".,;:-'\"()!?0123456789"]
PIECES += [f"[unused{i}]" for i in range(20, 20 + 128 - len(PIECES))]
CONFIG = helpers.config(model__vocab_size=len(PIECES), model__type_vocab_size=3)
WEIGHTS, WORD = "model.safetensors", "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def params():
    state = jax.jit(lambda: initial_state(CONFIG, helpers.SPECIAL))()
    return jax.tree.map(np.asarray, helpers.moved(state.params, 0.1))


@pytest.fixture(scope="module")
def original(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_file(weights.to_bert(CONFIG.model, params), folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(bert_config.to_json(CONFIG.model, 0)))
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    return folder


@pytest.fixture
def source(original, tmp_path):
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(original, tmp_path / "bert")


def change(source, tensors=None, **config):
    if tensors is not None:
        save_file(tensors, source / WEIGHTS)
    path = source / "config.json"
    values = json.loads(path.read_text()) | config
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "gone"}))


def imported(source, **kwargs):
    """(parameters, what was said)."""
    workdir, said = source.parent / "run", []
    recipe = small.get_config().to_dict()
    importing.import_model(
        kwargs.pop("path", source), workdir, tokenizer_file=None, recipe=recipe, log=said.append, **kwargs
    )
    assert sorted(path.name for path in source.parent.iterdir()) == [source.name, "run"]
    return jax.tree.map(np.asarray, load_run(workdir, None, print).state.params), "\n".join(said)


def refused(source, match, **kwargs):
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        imported(source, **kwargs)
    assert "\n" not in str(caught.value)
    assert sorted(source.parent.rglob("*")) == before, "something was written"
    return str(caught.value)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_masked_lm_comes_in_bit_for_bit(source, params):
    found, said = imported(source, path=source / WEIGHTS)
    assert_same(found, params)
    assert "imported 74 tensors" in said
    assert "head" not in said
    run = load_run(source.parent / "run", None, print)
    assert run.tokenizer.pieces == tuple(PIECES)
    assert dataclass_fields(run.config.model) == dataclass_fields(CONFIG.model)


def dataclass_fields(model):
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_an_encoder_without_prefix_and_head(source, params):
    """BertModel's names, the pooler and the index that old versions saved."""
    tensors = {name.removeprefix("bert."): x for name, x in load_file(source / WEIGHTS).items() if "cls." not in name}
    tensors |= {"pooler.dense.weight": np.ones((32, 32)), "embeddings.position_ids": np.arange(32)[None]}
    change(source, tensors)
    found, said = imported(source)
    assert_same(found["encoder"], params["encoder"])
    assert "there is no MLM head in it: the head starts from random weights" in said
    assert "left out, which this network has not: embeddings.position_ids, pooler.dense.weight" in said
    assert 0 < np.std(found["mlm_head"]["dense"]["kernel"]) < 0.05
    assert (found["mlm_head"]["norm"]["scale"] == 1).all()


def test_the_names_of_the_first_bert_checkpoints(source, params):
    """LayerNorm's gamma and beta, the decoder twice, and the next-sentence head."""
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in load_file(source / WEIGHTS).items()
    }
    tensors["cls.predictions.decoder.weight"] = tensors[WORD]
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    tensors["cls.seq_relationship.weight"] = np.ones((2, 32), np.float32)
    change(source, tensors)
    found, said = imported(source)
    assert_same(found, params)
    assert "cls.seq_relationship.weight" in said


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(source, params, dtype):
    change(source, {name: x.astype(dtype) for name, x in load_file(source / WEIGHTS).items()})
    found, _ = imported(source)
    assert_same(found, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))


def test_rows_that_no_piece_uses_are_left_out(source, params):
    """Vocabularies are padded to a round number for speed."""
    tensors = load_file(source / WEIGHTS)
    for name in (WORD, "cls.predictions.bias"):
        tensors[name] = np.concatenate([tensors[name], np.ones_like(tensors[name])[:7]])
    change(source, tensors, vocab_size=135)
    found, said = imported(source)
    assert_same(found, params)
    assert "warning: the checkpoint has 135 embedding rows and the tokenizer 128 pieces" in said
    shutil.rmtree(source.parent / "run")
    change(source, tensors, vocab_size=100)
    refused(source, r"vocab.txt has 128 pieces, but the checkpoint's config.json says 100")


def test_every_misfit_is_listed_in_one_message(source):
    tensors = load_file(source / WEIGHTS)
    del tensors["bert.encoder.layer.1.attention.self.key.bias"]
    del tensors["cls.predictions.transform.dense.weight"]
    tensors["lm_head.weight"] = np.ones((2, 32), np.float32)
    tensors["bert.encoder.layer.0.output.dense.weight"] = np.ones((64, 32), np.float32)
    tensors["bert.embeddings.LayerNorm.bias"] = np.ones(32, np.int8)
    change(source, tensors)
    message = refused(source, "does not fit the BERT of its config.json")
    for part in (
        "missing: bert.encoder.layer.1.attention.self.key.bias, cls.predictions.transform.dense.weight",
        "unknown: lm_head.weight",
        "bert.embeddings.LayerNorm.bias is I8 (32,), expected a float (32,)",
        "bert.encoder.layer.0.output.dense.weight is F32 (64, 32), expected a float (32, 64)",
    ):
        assert part in message
    change(source, num_hidden_layers=9)
    assert "and 70 more" in refused(source, "missing: bert.encoder.layer.1.attention")


def test_a_decoder_of_its_own_is_refused(source):
    tensors = load_file(source / WEIGHTS)
    change(source, tensors | {"cls.predictions.decoder.weight": tensors[WORD] + 1})
    refused(source, f"cls.predictions.decoder.weight differs from {WORD}, but this network ties the two")
    change(source, tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1})
    refused(source, "cls.predictions.decoder.bias differs from cls.predictions.bias")


def test_a_tensor_under_two_names_is_refused(source):
    tensors = load_file(source / WEIGHTS)
    change(source, tensors | {"bert.embeddings.LayerNorm.gamma": np.ones(32, np.float32)})
    refused(source, r"holds bert.embeddings.LayerNorm.weight twice, as bert.* and as bert")


def test_numbers_that_are_not_finite(source):
    tensors = load_file(source / WEIGHTS)
    tensors[WORD][3, 3] = np.nan
    change(source, tensors)
    refused(source, f"not finite in {WORD}")


def test_other_networks_are_refused_with_every_reason(source):
    change(source, model_type="roberta", position_embedding_type="relative_key", hidden_act="relu", hidden_size="gone")
    message = refused(source, r"config.json: no BERT that can be imported")
    for part in ("hidden_size is missing", "model_type is 'roberta'", "position_embedding_type is 'rel", "hidden_act"):
        assert part in message
    for text in ("{", "[]"):
        (source / "config.json").write_text(text)
        refused(source, r"config.json cannot be read")
    (source / "config.json").unlink()
    refused(source, r"config.json: no such file")


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_python", "gelu")]
)
def test_activations_by_their_other_names(theirs, ours):
    found = bert_config.from_json(bert_config.to_json(CONFIG.model, 0) | {"hidden_act": theirs}, "")
    assert found["activation"] == ours


def test_no_pickle_is_ever_loaded(source):
    """The file would say so if it were."""
    (source / WEIGHTS).unlink()
    (source / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch loaded'\ntR.")
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch loaded'\ntR.")
    for path in (source, source / "pytorch_model.bin"):
        message = refused(source, r"pytorch_model.bin is a pickle, which can run any code", path=path)
        assert f"import BertForMaskedLM as M; M.from_pretrained('{source}').save_pretrained('{source}'" in message
    # An encoder must not come back from the conversion with a random head.
    change(source, architectures=["BertModel"])
    assert "import BertModel as M" in refused(source, r"is a pickle")
    (source / "pytorch_model.bin").unlink()
    (source / "model.safetensors.index.json").write_text("{}")
    assert "import BertModel as M" in refused(source, r"holds shards, and one model.safetensors is expected; join them")


def test_files_that_are_not_there_or_damaged(source):
    (source.parent / "bert" / "notes.pt").touch()  # not a checkpoint, and not to be mentioned
    refused(source, r"--from .*none: no such file or folder", path=source / "none")
    (source / "notes.pt").unlink()
    (source / WEIGHTS).write_bytes(b"hello")
    refused(source, r"model.safetensors is not a safetensors file that can be read")
    (source / "vocab.txt").unlink()
    refused(source, r"holds no tokenizer \(tokenizer.model, tokenizer.json, vocab.txt\); name one with --tokenizer")
    (source / WEIGHTS).unlink()
    refused(source, r"no model.safetensors there")


def test_an_import_that_fails_midway_leaves_nothing(source, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing.Checkpoints, "wait", full)
    refused(source, r"cannot write .*run: .*No space left")


def test_a_config_without_a_model_type_is_a_bert(source, params):
    """As in the first checkpoints on the Hub; `transformers` fills it in."""
    change(source, model_type="gone")
    assert_same(imported(source)[0], params)


def test_a_workdir_that_exists_is_left_alone(source, tmp_path):
    (tmp_path / "run").mkdir()
    refused(source, r"run exists already")


def test_the_command_says_what_to_do_in_one_line(source, tmp_path, capsys):
    arguments = ["import", f"--from={source}", f"--workdir={tmp_path / 'run'}", "--config=none.py"]
    assert huggingface.main(arguments) == 2
    assert "--config=none.py: no such file" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("def get_config():\n    return {}[1]\n")
    assert huggingface.main([*arguments[:-1], f"--config={tmp_path / 'broken.py'}"]) == 2
    assert "broken.py, line 2: KeyError: 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def start(original, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("start") / "run"
    recipe = small.get_config().to_dict()
    importing.import_model(original, workdir, tokenizer_file=None, recipe=recipe, log=lambda line: None)
    return workdir


def continued(start, **changes):
    values = {"model__vocab_size": len(PIECES), "model__type_vocab_size": 3, "train__init": str(start)}
    return helpers.config(**(values | {"data__tokenizer": str(start / "tokenizer.json")} | changes))


def test_a_config_that_cannot_start_from_it_fails_before_any_work(start, rows, tmp_path):
    for changes, match in (
        ({"model__num_layers": 5}, r"is another network: model.num_layers \(4 there, 5 now\)"),
        (
            {"data__tokenizer": ""},
            r"data.input would be prepared with another tokenizer .* use --config.data.tokenizer=.*json",
        ),
        ({"data__rows": str(rows)}, r"rows .* were prepared with another tokenizer than that of config.train.init"),
        ({"train__init": "none"}, r"none is not the workdir of a run"),
    ):
        with pytest.raises(UserError, match=match):
            train_and_evaluate(continued(start, **({"data__prepared_dir": "none"} | changes)), tmp_path / "run", print)
    assert not list((tmp_path / "run").glob("*"))


def test_the_imported_workdir_stays_as_it_is(start):
    with pytest.raises(UserError, match=r"holds an imported model, .* --config=configs/continued.py:"):
        train_and_evaluate(continued(start), start, print)


@pytest.mark.parametrize("init", ["", ":BERT"])
def test_the_recipe_wants_a_workdir(original, init, tmp_path):
    recipe = "--config=configs/continued.py" + init.replace("BERT", str(original))
    done = helpers.run_module("sctd_jax.main", recipe, f"--workdir={tmp_path}")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "wants the workdir of a run or an import, found " in line
    assert "Traceback" not in done.stderr


def test_training_from_wordpiece_without_a_head_and_on_after_the_start_has_moved(original, speeches, tmp_path):
    """The rows come from the vocab.txt itself; what a run started from is not needed once it has a checkpoint."""
    source = shutil.copytree(original, tmp_path / "bert")
    change(source, {name: x for name, x in load_file(source / WEIGHTS).items() if "cls." not in name})
    start = tmp_path / "run"
    _, said = imported(source)
    assert "the head starts from random weights" in said
    rows = prepare.Settings(
        tuple(speeches[:12]), "text", "paragraph", 32, len(PIECES), str(source / "vocab.txt"), "bpe", 0.02, 0
    )
    prepare.prepare(rows, tmp_path / "rows", lambda line: None)
    config = continued(start, data__rows=str(tmp_path / "rows"), train__steps=3, mesh__data=1)
    log = []
    result = train_and_evaluate(config, tmp_path / "mine", log.append)
    assert any(line.startswith(f"starting from the parameters of {start} at step 0") for line in log)
    assert result.step == 3
    word = np.asarray(result.state.params["encoder"]["embeddings"]["word"])
    started = load_file(source / WEIGHTS)[WORD]
    assert 0 < np.abs(word - started).max() < 0.05
    huggingface.main(["export", f"--workdir={tmp_path / 'mine'}", f"--out={tmp_path / 'out'}"])
    assert tokenizer.load(tmp_path / "out" / "tokenizer.json").pieces == tuple(PIECES)
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    start.rename(tmp_path / "moved")
    again = train_and_evaluate(config, tmp_path / "mine", log.append)
    assert again.step == 3
    assert "resuming at step 3" in log
