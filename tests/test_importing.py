"""BERT checkpoints as they are found in the wild -> a workdir, or one message and nothing written."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from sctd_jax.data import prepare, tokenizer
from sctd_jax.errors import UserError
from sctd_jax.hf import config_json as bert_config
from sctd_jax.hf import convert, read
from sctd_jax.hf import names as weights
from sctd_jax.interop import huggingface, importing
from sctd_jax.models import open_model, open_run
from sctd_jax.pretrain.pretraining import train_and_evaluate
from tests import helpers, small

PIECES = ["[PAD]", *(f"[unused{i}]" for i in range(20)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *".,;:-'\"()!?0123456789"]
PIECES += [f"[unused{i}]" for i in range(20, 20 + 128 - len(PIECES))]
CONFIG = helpers.config(model__vocab_size=len(PIECES), model__type_vocab_size=3)
WEIGHTS, WORD = "model.safetensors", "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def params():
    state = helpers.initial(CONFIG)
    return jax.tree.map(np.asarray, helpers.moved(state.params, 0.1))


@pytest.fixture(scope="module")
def original(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_file(helpers.bert_tensors(CONFIG.model, params), folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(bert_config.to_json(CONFIG.model, helpers.SPECIAL)))
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
    return jax.tree.map(np.asarray, open_run(workdir, print).params()), "\n".join(said)


def refused(source, match, **kwargs):
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        imported(source, **kwargs)
    assert "\n" not in str(caught.value)
    assert sorted(source.parent.rglob("*")) == before, "something was written"
    return str(caught.value)


def unreadable(source, match):
    """`refused` without the time that the rest takes."""
    with pytest.raises(UserError, match=match) as caught:
        read.check_tensors(source / WEIGHTS, CONFIG.model, len(PIECES))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_masked_lm_comes_in_bit_for_bit(source, params):
    """No code of its folder runs: `auto_map` names classes for transformers' trust_remote_code."""
    change(source, auto_map={"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"})
    (source / "modeling.py").write_text(f"open({str(source.parent / 'it ran')!r}, 'w')")
    found, said = imported(source, path=source / WEIGHTS)
    assert_same(found, params)
    assert "imported 74 tensors" in said
    assert "head" not in said
    run = open_run(source.parent / "run", print)
    assert run.tokenizer.pieces == tuple(PIECES)
    assert dataclass_fields(run.config.model) == dataclass_fields(CONFIG.model)


def dataclass_fields(model):
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_an_encoder_without_prefix_and_head(source, params):
    """BertModel's names, the pooler and the index that old versions saved."""
    tensors = {name.removeprefix("bert."): x for name, x in load_file(source / WEIGHTS).items() if "cls." not in name}
    tensors |= {"pooler.dense.weight": np.ones((32, 32)), "pooler.dense.bias": np.ones(32)}
    tensors |= {"embeddings.position_ids": np.arange(32)[None]}
    change(source, tensors)
    found, said = imported(source)
    assert_same(found["encoder"], params["encoder"])
    assert "there is no MLM head in it: the head starts from random weights" in said
    assert "left out, which this network has not: embeddings.position_ids, pooler.dense.bias, pooler" in said
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
    change(source, {f"module.{name}": x for name, x in tensors.items()})
    found, said = imported(source)
    assert_same(found, params)
    assert "read without what a wrapper put into the tensors' names: module." in said
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
    change(source, tensors, vocab_size=135, pad_token_id=77)
    found, said = imported(source)
    assert_same(found, params)
    assert "warning: the checkpoint has 135 embedding rows and the tokenizer 128 pieces" in said
    assert "warning: config.json says pad_token_id 77, but [PAD] is " in said
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


def test_a_decoder_of_its_own_is_refused(source, params):
    tensors = load_file(source / WEIGHTS)
    change(source, tensors | {"cls.predictions.decoder.weight": tensors[WORD] + 1})
    unreadable(source, f"cls.predictions.decoder.weight differs from {WORD}, but this network ties the two")
    change(source, tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1})
    unreadable(source, "cls.predictions.decoder.bias differs from cls.predictions.bias")


def test_a_tensor_under_two_names_is_refused(source, params):
    tensors = load_file(source / WEIGHTS)
    change(source, tensors | {"bert.embeddings.LayerNorm.gamma": np.ones(32, np.float32)})
    unreadable(source, r"holds bert.embeddings.LayerNorm.weight twice, as bert.* and as bert")


@pytest.mark.parametrize(
    "name", [WORD, "cls.predictions.decoder.weight", "bert.pooler.dense.bias", "cls.seq_relationship.bias"]
)
def test_numbers_that_are_not_finite_are_found_in_every_tensor(source, params, name):
    """The pooler is fine-tuned, and what an import leaves out shows that the file is damaged."""
    tensors = load_file(source / WEIGHTS)
    tensors["cls.predictions.decoder.weight"] = tensors[WORD].copy()
    tensors |= {"bert.pooler.dense.weight": np.ones((32, 32)), "bert.pooler.dense.bias": np.ones(32)}
    tensors["cls.seq_relationship.bias"] = np.ones(2)
    tensors[name].flat[1] = 1e300 if name == "bert.pooler.dense.bias" else np.nan
    change(source, tensors)
    unreadable(source, rf"not finite in {name}; take another copy")


def test_a_pooler_that_does_not_fit_is_refused(source, params):
    """Fine-tuning would start from random numbers in its place."""
    tensors = load_file(source / WEIGHTS) | {"bert.pooler.dense.weight": np.ones((32, 8), np.float32)}
    change(source, tensors)
    unreadable(source, "has half a pooler: bert.pooler.dense.weight alone")
    change(source, tensors | {"bert.pooler.dense.bias": np.ones(32, np.float32)})
    unreadable(source, r"the pooler is \(32, 8\) and \(32,\), expected \(32, 32\) and \(32,\)")


def test_other_networks_are_refused_with_every_reason(source):
    change(source, position_embedding_type="relative_key", hidden_act="relu", hidden_size="gone")
    message = refused(source, r"config.json: no BERT that can be imported")
    for part in ("hidden_size is missing", "position_embedding_type is 'rel", "hidden_act"):
        assert part in message
    for kind in ("distilbert", "electra", "deberta-v2", "roberta-prelayernorm", 3):
        change(source, model_type=kind)
        supported = "bert, roberta, xlm-roberta, camembert, modernbert$"
        refused(source, f"config.json: model_type is {kind!r}, supported are {supported}")
    tokenizer_config = source / "tokenizer_config.json"
    before = tokenizer_config.read_text() if tokenizer_config.exists() else "{}"
    tokenizer_config.write_text(json.dumps({"tokenizer_class": "DebertaV2Tokenizer"}))
    refused(source, f"config.json: model_type is 3, supported are {supported}")
    tokenizer_config.write_text(before)
    weights = (source / WEIGHTS).rename(source / "pytorch_model.bin")
    refused(source, f"config.json: model_type is 3, supported are {supported}")
    weights.rename(source / WEIGHTS)
    for text in ("{", "[]"):
        (source / "config.json").write_text(text)
        refused(source, r"config.json cannot be read")
    (source / "config.json").unlink()
    refused(source, r"config.json: no such file")


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_python", "gelu")]
)
def test_activations_by_their_other_names(theirs, ours):
    found = bert_config.from_json(bert_config.to_json(CONFIG.model, helpers.SPECIAL) | {"hidden_act": theirs}, "")
    assert found["activation"] == ours


def test_no_pickle_is_ever_loaded(source):
    """The file would say so if it were."""
    (source / WEIGHTS).unlink()
    (source / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch loaded'\ntR.")
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch loaded'\ntR.")
    for path in (source, source / "pytorch_model.bin"):
        message = refused(source, r"pytorch_model.bin is a pickle, which can run any code and is never", path=path)
        assert f"where torch and safetensors are installed: python -m sctd_jax.interop.convert {path}" in message
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle.*; pip install torch here: No module named"):
        convert.convert(source)


def other_formats(folder, tensors, monkeypatch):
    """Writes the folder's tensors in each format, and stands in for the libraries that our environment has not."""
    folder.mkdir()
    (folder / "bert_config.json").write_text('{"vocab_size": 128}')
    flax = {}
    for name, x in tensors.items():
        norm = "LayerNorm" in name
        leaf = "embedding" if "_embeddings" in name else "scale" if norm else "kernel"
        name = re.sub("weight$", leaf, name)
        flax[tuple(name.split("."))] = x.T if leaf == "kernel" and name.endswith("kernel") else x
    file = folder / "flax_model.msgpack"
    file.write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(flax)))
    yield [file], file, "flax_model.msgpack is Flax's; convert it, where flax"

    keras = {}  # names as TFBertForMaskedLM saves them, tied tensors twice
    for name, x in tensors.items():
        name, matrix = name.replace(".", "/").replace("layer/", "layer_._").replace("cls/", "mlm___cls/"), x.ndim == 2
        if "_embeddings/" in name:
            name, matrix = name if "word" in name else name.replace("weight", "embeddings"), False
        name = name.replace("LayerNorm/weight", "LayerNorm/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
        group = name.partition("/")[0]
        name = name.replace("weight", "kernel") if matrix else name
        for top in {group, "mlm___cls" if "word" in name else group}:
            keras[f"{top}/tf_bert_for_masked_lm/{name}:0"] = x.T if matrix else x
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda path: KerasFile(keras)))
    file = folder / "tf_model.h5"
    file.touch()
    yield [file], file, "tf_model.h5 is Keras's; convert it, where h5py"

    google = {"global_step": np.int64(3), "bert/pooler/dense/kernel/adam_m": np.ones((2, 3))}
    for name, x in tensors.items():
        name = name.replace(".", "/").replace("layer/", "layer_").replace("predictions/bias", "predictions/output_bias")
        name = name.replace("LayerNorm/weight", "LayerNorm/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
        kernel = name.endswith("/weight") and "_embeddings" not in name
        google[name.removesuffix("/weight") + "/kernel" * kernel] = x.T if kernel else x
    reader = SimpleNamespace(get_variable_to_shape_map=lambda: google, get_tensor=google.get)
    stem = folder / "bert_model.ckpt"
    train = SimpleNamespace(load_checkpoint=lambda path: reader if path == str(stem) else None)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(train=train))
    files = [folder / f"bert_model.ckpt.{end}" for end in ("data-00000-of-00001", "index", "meta")]
    [file.touch() for file in files]
    yield files, stem, "is TensorFlow's; convert it, where tensorflow"
    (folder / "checkpoint").touch()

    class Tensor(np.ndarray):
        detach = np.ndarray.view

        def numpy(self):
            return np.asarray(self)

    def load(path, *, map_location, weights_only):
        assert weights_only and map_location == "cpu"
        state = {name: x.view(Tensor) for name, x in tensors.items()} | {"version": 3}
        return {"state_dict": state, "epoch": 1} if path.suffix == ".ckpt" else state

    torch = SimpleNamespace(load=load, is_tensor=lambda x: isinstance(x, Tensor), bfloat16="bfloat16")
    monkeypatch.setitem(sys.modules, "torch", torch)
    for file in (folder / "pytorch_model.bin", folder / "epoch=3.ckpt"):
        file.touch()
        yield [file], file, "is a pickle"


class KerasFile(dict):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def visititems(self, visit):
        visit("bert", object())  # a group
        for name, x in self.items():
            visit(name, x)


def test_weights_of_other_formats_get_the_line_that_converts_them_with_every_tensor(original, tmp_path, monkeypatch):
    """Whatever `architectures` says: none is needed, and no MLM head gets lost."""
    tensors = load_file(original / WEIGHTS)
    folder = tmp_path / "other"
    for files, named, message in other_formats(folder, tensors, monkeypatch):
        for file in files:
            file.chmod(0o600)
        for source in (folder, named):
            with pytest.raises(UserError) as caught:
                convert.find_weights(source)
            assert message in str(caught.value)
            assert str(caught.value).endswith(f": python -m sctd_jax.interop.convert {source}")
            done = convert.convert(source)
            assert done.stat().st_mode & 0o777 == 0o600
            found = load_file(done)
            assert found.keys() == {re.sub("gamma$", "weight", name) for name in tensors}
            jax.tree.map(np.testing.assert_array_equal, found, tensors)
            with pytest.raises(UserError, match="is there already: nothing to convert"):
                convert.convert(source)
            done.unlink()
        for file in files:
            file.unlink()
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "bert", "vocab_size": 128}
    with pytest.raises(UserError, match=r"two tensors are called a.weight, the second as a/kernel"):
        convert.torch_names([("a/weight", np.ones(1)), ("a/kernel", np.zeros(1))])


def test_shards_are_read_as_one_file(source, params):
    tensors = load_file(source / WEIGHTS)
    one = read.read_folder(source).digest
    (source / WEIGHTS).unlink()
    shards = [source / f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, shard in enumerate(shards):
        save_file(dict(list(tensors.items())[i::3]), shard)
    # An index can name any file: it is not read.
    save_file({WORD: np.ones(1)}, source.parent / "secret.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {WORD: "../secret.safetensors"}}))
    folder = read.read_folder(source)
    assert_same(folder.params(), params)
    assert folder.tensors == 74 and not folder.left_out and folder.digest != one
    assert_same(read.read_folder(shards[1]).params(), params)
    bias = next(name for name in load_file(shards[2]))
    save_file({bias: tensors[bias], **load_file(shards[1])}, shards[1])
    with pytest.raises(UserError, match=rf"model-00003-of-00003.safetensors holds {bias}, which another shard holds"):
        read.read_folder(source)
    shards[2].rename(source / "hidden")
    with pytest.raises(UserError, match=r"is one of 3 shards, of which model-00003-of-00003.safetensors is missing"):
        read.read_folder(source)
    shards[1].write_bytes(b"hello")
    (source / "hidden").rename(shards[2])
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors is not a safetensors file that can be read"):
        read.read_folder(source)
    with pytest.raises(UserError, match=r"a shard of 1 to 1,?000 is expected"):
        convert.shards(source / "model-00001-of-99999.safetensors")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("roberta-large", "FacebookAI/roberta-large"),
        ("xlm-roberta-base", "FacebookAI/xlm-roberta-base"),
        ("camembert-base", "almanach/camembert-base"),
        ("ModernBERT-base", "answerdotai/ModernBERT-base"),
        ("nlpaueb/legal-bert-base-uncased", "nlpaueb/legal-bert-base-uncased"),
        ("hf://org/x", "org/x"),
        ("https://huggingface.co/org/x/tree/main", "org/x"),
        ("/data/bert", None),
        ("a/b/c", None),
        ("../bert", None),
    ],
)
def test_a_name_of_the_hub_gets_the_line_that_downloads_it(name, repository, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface.recipes, "load", lambda path: SimpleNamespace(to_dict=dict))
    assert huggingface.main(["import", "--from", name, "--workdir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": no such file or folder" in line
    assert (f"hf download {repository} " in line) if repository else "hf download" not in line
    if name == "bert-base-uncased":  # for fine-tuning, too
        with pytest.raises(UserError, match=f"hf download {repository} "):
            open_model(name, print)


def test_paths_of_a_bucket_do_not_become_folders_called_gs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface.recipes, "load", lambda path: SimpleNamespace(to_dict=dict))
    assert huggingface.main(["import", "--from=gs://bucket/bert", "--workdir=run"]) == 2
    assert "--from gs://bucket/bert: a folder of this machine is expected; copy it" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert huggingface.main(["import", "--from=~/bert", "--workdir=run"]) == 2
    assert f"{tmp_path}/bert: no such file or folder" in capsys.readouterr().err
    for arguments in (["import", "--from=bert", "--workdir=gs://b/run"], ["export", "--workdir=run", "--out=gs://b/x"]):
        with pytest.raises(SystemExit):
            huggingface.main(arguments)
        assert "a path on a disk is expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def plainly(names):
    found, cut = read._present_names("file", names, weights.LAYOUTS["bert"])
    return list(found), cut


@pytest.mark.parametrize(
    ("front", "cut"),
    [
        ("module.", ["module."]),
        ("_orig_mod.", ["_orig_mod."]),
        ("model.", ["model."]),
        ("module._orig_mod.", ["_orig_mod.", "module."]),
        ("_orig_mod.model.module.", ["_orig_mod.", "module.", "model."]),
        ("bert.", ["bert."]),
        ("student.net.", ["student.net."]),
    ],
)
def test_what_wrappers_put_in_front_of_names_is_cut_and_said(front, cut):
    names = [
        *weights.task_names(CONFIG.model, weights.SEQUENCE),
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
    ]
    assert plainly([front + name for name in names]) == (names, cut)
    assert plainly(names) == (names, [])
    # Weights of the encoder alone, as a part of something else or by itself.
    encoder = [name for name in names if name.startswith("bert.")]
    bare = [name.removeprefix("bert.") for name in encoder]
    assert plainly([front + name for name in bare]) == (encoder, [] if front == "bert." else cut)
    assert plainly(["0.auto_model." + name for name in bare]) == (encoder, ["0.auto_model."])
    assert plainly(["bert._orig_mod." + name for name in bare]) == (encoder, ["_orig_mod."])


def test_who_opens_a_folder_is_told_how_it_was_read(source):
    change(source, {f"module.{name}": x for name, x in load_file(source / WEIGHTS).items()})
    said = []
    open_model(str(source), said.append)
    assert said == ["read without what a wrapper put into the tensors' names: module."]


def test_two_encoders_in_one_file_are_refused(source, params):
    tensors = load_file(source / WEIGHTS)
    change(source, {f"{name}.{key}": x for key, x in tensors.items() for name in ("question", "context")})
    unreadable(source, r"holds 2 encoders \(context.bert., question.bert.\), and one is expected")


def test_names_of_a_file_are_printed_escaped(source, params):
    tensors = load_file(source / WEIGHTS)
    forged = "bert.x\nerror: all is well\x1b[2J"
    change(source, tensors | {forged: np.ones(1)})
    assert r"unknown: bert.x\nerror: all is well\x1b[2J" in unreadable(source, "does not fit")
    change(source, tensors | {f"classifier.{forged}": np.full(1, np.nan)})
    assert r"classifier.bert.x\nerror: all is well\x1b[2J" in unreadable(source, "not finite")


def test_files_that_are_not_there_or_damaged(source):
    (source.parent / "bert" / "notes.pt").touch()  # not a checkpoint, and not to be mentioned
    refused(source, r"none: no such file or folder$", path=source / "none")
    (source / "notes.pt").unlink()
    (source / WEIGHTS).write_bytes(b"hello")
    refused(source, r"model.safetensors is not a safetensors file that can be read")
    (source / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 440449768\n")
    refused(source, r"model.safetensors is Git LFS's pointer to the weights, not the weights: git lfs pull")
    (source / "vocab.txt").unlink()
    refused(source, r"holds no tokenizer \(tokenizer.model, tokenizer.json, .*, vocab.txt\); name one with --tokenizer")
    (source / WEIGHTS).rename(source / "model.fp16.safetensors")
    refused(source, r"no model.safetensors there; name .*model.fp16.safetensors if it is what you mean")
    (source / "model.fp16.safetensors").unlink()
    refused(source, r"no model.safetensors there$")


def test_an_import_that_fails_midway_leaves_nothing(source, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing.Checkpoints, "wait", full)
    refused(source, r"cannot write .*run: .*No space left")


def test_a_config_without_a_model_type_is_a_bert(source, params):
    """The first checkpoints on the Hub lack it; `transformers` fills it in."""
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
    vocab = str(source / "vocab.txt")
    data = helpers.data(input=",".join(speeches[:12]), documents="paragraph", tokenizer=vocab, heldout_share=0.02)
    prepare.prepare(data, len(PIECES), tmp_path / "rows", lambda line: None)
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
