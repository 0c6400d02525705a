"""Export and import, seen from our side and, in an environment of its own, from `transformers`'.

There tests/interop_check.py loads what we export, and tests/interop_create.py makes what we import.
"""

import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import yaml
from safetensors.numpy import load_file

from sctd_jax.data import corpus, prepare, tokenizer
from sctd_jax.data.rows import HELD_OUT, Rows
from sctd_jax.errors import UserError
from sctd_jax.hf import names, write
from sctd_jax.hf.read import read_folder
from sctd_jax.interop import exported as exported_module
from sctd_jax.interop import exporting, huggingface, importing
from sctd_jax.models import open_run
from sctd_jax.pretrain.model import make_model
from sctd_jax.train.metrics import read_metrics
from tests import helpers, small


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def workdir(request, speeches, tmp_path_factory):
    """A short run on real text, with a tokenizer of each kind."""
    folder = tmp_path_factory.mktemp(f"interop-{request.param}")
    data = helpers.data(
        input=",".join(speeches), documents="paragraph", tokenizer_type=request.param, heldout_share=0.02
    )
    prepare.prepare(data, 2000, folder / "rows", lambda line: None)
    where = ["--config=tests/small.py", f"--workdir={folder / 'run'}", f"--config.data.rows={folder / 'rows'}"]
    changes = {"model.vocab_size": 2000, "optimizer.learning_rate": 0.01}
    changes |= {f"train.{name}": 15 for name in ("eval_every", "checkpoint_every")} | {"train.steps": 30}
    done = helpers.run_module("sctd_jax.main", *where, *(f"--config.{k}={v}" for k, v in changes.items()))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def export(workdir, out, *args, code=0):
    done = helpers.call(huggingface.main, "export", f"--workdir={workdir}", f"--out={out}", *args)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """Folder that the command wrote: the one export by a process of its own."""
    out = tmp_path_factory.mktemp("exported") / "model"
    done = helpers.run_module("sctd_jax.interop.huggingface", "export", f"--workdir={workdir}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out


def test_the_folder_holds_what_transformers_reads(exported, workdir):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "tokenizer.model", "README.md",
    }  # fmt: skip
    card = (exported / "README.md").read_text()
    for text in ("`sctd`", "Steps: 30 of 8 rows", "Held-out MLM loss", "--config=tests/small.py", "rows of 32"):
        assert text in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "unknown" and head["tags"] == ["bert", "sctd_jax", "token-dropping", "sctd"]
    assert "language" not in head and "base_model" not in head and "datasets" not in head  # nobody said
    (result,) = head["model-index"][0]["results"]
    lines = [line for line in read_metrics(workdir) if line["step"] == 30 and "eval/loss" in line]
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found == {name: round(lines[-1][f"eval/{name}"], 6) for name in ("loss", "below_unigram", "accuracy")}
    assert "hou-etal-2022-token" in card and "zhong-etal-2023-revisiting" in card
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_act"]) == ("bert", 4, "gelu")


def test_the_tensors_are_the_parameters_bit_for_bit(exported, workdir):
    params = open_run(workdir, print).params()
    tensors = load_file(exported / "model.safetensors")
    layer = params["encoder"]["layer_2"]
    expected = {
        "bert.embeddings.word_embeddings.weight": params["encoder"]["embeddings"]["word"],
        "bert.encoder.layer.2.attention.self.query.weight": layer["attention"]["query"]["kernel"].reshape(32, 32).T,
        "bert.encoder.layer.2.attention.output.dense.weight": layer["attention"]["output"]["kernel"].reshape(32, 32).T,
        "bert.encoder.layer.2.output.dense.weight": layer["mlp"]["output"]["kernel"].T,
        "bert.encoder.layer.2.output.LayerNorm.bias": layer["output_norm"]["bias"],
        "cls.predictions.bias": params["mlm_head"]["bias"],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("workdir", ["unigram"], indirect=True)
def test_an_existing_folder_is_replaced_only_by_force(exported, workdir, tmp_path):
    out = shutil.copytree(exported, tmp_path / "model")
    refused = export(workdir, out, code=2)
    assert "exists already; --force replaces it" in refused.stderr
    (out / "README.md").write_text("mine")
    said = ["--license=apache-2.0", "--language=de", "--language=en", "--base-model=google-bert/bert-base-cased"]
    done = export(workdir, out, "--force", *said)
    assert "its model card (README.md) leaves open what only you know: --dataset" in done.stdout
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (head["license"], head["language"]) == ("apache-2.0", ["de", "en"])
    assert head["base_model"] == ["google-bert/bert-base-cased"]
    (out / "mine.txt").write_text("keep")
    export(workdir, out, "--force", code=2)
    assert (out / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("license", "Apache 2.0"), ("language", "German"), ("base_model", "runs/a/b"), ("dataset", "my data"),
        ("base_model", "x\n---"),
    ],
)  # fmt: skip
def test_what_the_hub_would_refuse_in_a_card_is_refused_before_the_export(field, value):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} .*: expected ") as caught:
        exported_module.Said(**{field: value if field == "license" else (value,)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workdir", ["unigram"], indirect=True)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_rounded_and_split_as_asked(workdir, dtype, tmp_path):
    out = tmp_path / "model"
    done = export(workdir, out, f"--dtype={dtype}", "--max-shard-size=50KB")
    assert f"its float32 numbers rounded to {dtype}" in done.stdout
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2
    tensors = {}
    for file in files:
        inside = load_file(file)
        assert {str(x.dtype) for x in inside.values()} == {dtype}
        assert len(inside) == 1 or sum(x.nbytes for x in inside.values()) <= 50_000
        assert {name for name, where in index["weight_map"].items() if where == file.name} == inside.keys()
        tensors |= inside
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    expected = jax.tree.map(lambda x: np.asarray(x).astype(dtype), open_run(workdir, print).params())
    jax.tree.map(np.testing.assert_array_equal, read_folder(out).params(), expected)

    export(workdir, out, "--force")
    assert [path.name for path in out.glob("model.*")] == ["model.safetensors"] and not list(out.glob("model-*"))


def test_a_size_without_its_unit_is_refused(capsys):
    with pytest.raises(SystemExit):
        huggingface.main(["export", "--workdir=x", "--out=y", "--max-shard-size=5"])
    assert "--max-shard-size: a size as 5GB, 500MB or 100KB is expected, found '5'" in capsys.readouterr().err


def test_a_number_beyond_float16_is_refused(rows, tmp_path):
    config = helpers.config().model
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), dict(helpers.initial(helpers.config()).params))
    params["mlm_head"]["bias"][:3] = 1e5
    table, precision, file = names.names(config), write.Precision("float16"), tokenizer.find(rows)
    with pytest.raises(UserError, match=r"cls.predictions.bias: 3 of 512 numbers, up to 1e\+05, are beyond float16"):
        write.write_folder(tmp_path, config, params, file, table=table, settings={}, precision=precision)


@pytest.mark.parametrize("workdir", ["unigram"], indirect=True)
def test_an_older_step(exported, workdir, tmp_path):
    export(workdir, tmp_path / "older", "--step=15")
    assert "Steps: 15 of 8 rows" in (tmp_path / "older" / "README.md").read_text()
    older, newer = (load_file(folder / "model.safetensors") for folder in (tmp_path / "older", exported))
    params = open_run(workdir, print).params(15)
    np.testing.assert_array_equal(older["cls.predictions.bias"], params["mlm_head"]["bias"])
    assert (older["cls.predictions.bias"] != newer["cls.predictions.bias"]).any()


@pytest.mark.parametrize("workdir", ["unigram"], indirect=True)
def test_force_replaces_nothing_but_an_export(workdir, tmp_path):
    before = sorted(workdir.rglob("*"))
    refused = export(workdir, workdir, "--force", code=2)
    assert "is not just an export, so that --force does not replace it" in refused.stderr
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("workdir", ["unigram"], indirect=True)
def test_an_export_that_fails_midway_leaves_the_old_one(exported, workdir, tmp_path, monkeypatch):
    out = shutil.copytree(exported, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.config_json, "to_json", full)  # the weights are written by then
    for folder in (out, tmp_path / "new"):
        with pytest.raises(UserError, match=r"cannot write .* No space left"):
            exporting.export(workdir, folder, step=None, force=True, log=print)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_step_that_is_not_there_and_a_folder_that_is_no_run(workdir, tmp_path):
    missing = export(workdir, tmp_path / "x", "--step=7", code=2)
    assert "no checkpoint of step 7, found [15, 30]" in missing.stderr
    assert "not the workdir of a run" in export(tmp_path, tmp_path / "x", code=2).stderr
    assert list(tmp_path.iterdir()) == []


def real_lines(count):
    """The first paragraphs of the trial corpus, as lines."""
    chunks = corpus.read(corpus.find_sources([]), text_field="", documents="paragraph", counts=corpus.Counts())
    return [chunk.text[:400] for chunk in itertools.islice(chunks, count)]


def mlm_logits(run, ids, mask, segments):
    """Logits [B, N, V] of a run's full model."""

    @jax.jit
    def network(params, ids, mask, segments):
        def logits(bert):
            return bert.mlm_logits(bert.encoder(ids, mask, segments)[0])

        return make_model(run.config).apply({"params": params}, method=logits)

    return network(run.params(), *map(jnp.asarray, (ids, mask, segments)))


def fill_mask_prompt(run):
    """A text with a hidden word, and our five best ids for it."""
    special, mask_piece = run.tokenizer.special, run.tokenizer.pieces[run.tokenizer.special.mask]
    prompt = f"The {mask_piece} of the United States"
    before, after = run.tokenizer.encode(prompt.split(" " + mask_piece))
    ids = np.array([[special.cls, *before, special.mask, *after, special.sep]])
    scores = mlm_logits(run, ids, ids >= 0, np.zeros_like(ids))[0, 1 + len(before)]
    return prompt, np.argsort(-np.asarray(scores), kind="stable")[:5]


def expectations(workdir, path):
    """Answers of our side for real lines, a padded batch with two segments, and a prompt."""
    run = open_run(workdir, print)
    texts = real_lines(2000)
    ids = run.tokenizer.encode(texts)
    special = run.tokenizer.special
    flat = list(itertools.chain.from_iterable(ids))
    batch = np.full((4, 32), special.pad)
    segments = np.zeros((4, 32), np.int64)
    heldout = Rows(run.config.data.rows, HELD_OUT).read(range(4))
    for row, length in enumerate((32, 25, 18, 9)):
        batch[row, :length] = [*heldout[row, : length - 1], special.sep]
        segments[row, length // 2 : length] = 1
    mask = batch != special.pad
    prompt, top5 = fill_mask_prompt(run)
    np.savez(
        path, lines=texts, line_ids=np.array(flat), line_lengths=[len(x) for x in ids], ids=batch, mask=mask,
        segments=segments, logits=mlm_logits(run, batch, mask, segments), prompt=prompt,
        top5=top5,
    )  # fmt: skip


needs_peer = pytest.mark.skipif(not helpers.PEER.exists(), reason="no environment with transformers: make interop")


@needs_peer
def test_transformers_sees_the_same_model(exported, workdir, run_peer, tmp_path):
    expectations(workdir, tmp_path / "expected.npz")
    run_peer("interop_check.py", exported, tmp_path / "expected.npz")


def test_an_export_comes_back_bit_for_bit(exported, workdir, tmp_path):
    recipe = small.get_config().to_dict()
    again = tmp_path / "again"
    importing.import_model(exported, again, tokenizer_file=None, recipe=recipe, log=print)
    before, after = open_run(workdir, print), open_run(again, print)
    jax.tree.map(np.testing.assert_array_equal, after.params(), before.params())
    assert after.config.model == before.config.model
    assert after.tokenizer.pieces == before.tokenizer.pieces
    assert tokenizer.digest(tokenizer.find(again)) == tokenizer.digest(tokenizer.find(workdir))
    export(again, tmp_path / "model")
    assert "Training: none by sctd_jax" in (tmp_path / "model" / "README.md").read_text()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workdir", ["unigram"], indirect=True)
def test_training_continues_from_an_import(exported, workdir, tmp_path):
    """Text -> run -> export -> import -> ScTD from there: the first evaluation is the last one of the run before."""
    done = helpers.call(
        huggingface.main, "import", f"--from={exported}", f"--workdir={tmp_path / 'start'}", "--config=tests/small.py"
    )
    assert done.returncode == 0, done.stderr
    before = json.loads((workdir / "config.json").read_text())
    changes = {"train.steps": 2, "train.eval_every": 2, "train.checkpoint_every": 2, "train.batch_size": 8}
    changes |= {
        "train.eval_rows": 20,
        "model.dtype": "float32",
        "data.rows": before["data"]["rows"],
        "data.seq_len": 32,
        "dropping.sc_interval": 3,
    }
    done = helpers.run_module(
        "sctd_jax.main", f"--config=configs/continued.py:{tmp_path / 'start'}", f"--workdir={tmp_path / 'run'}",
        *(f"--config.{name}={value}" for name, value in changes.items()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"starting from the parameters of {tmp_path / 'start'} at step 0" in done.stdout
    theirs = [line["eval/loss"] for line in read_metrics(workdir) if "eval/loss" in line]
    ours = [line["eval/loss"] for line in read_metrics(tmp_path / "run") if "eval/loss" in line]
    assert theirs[0] > theirs[-1] + 0.1
    assert ours[0] == pytest.approx(theirs[-1], rel=1e-5)
    export(tmp_path / "run", tmp_path / "model")
    assert f"Started from: {tmp_path / 'start'}" in (tmp_path / "model" / "README.md").read_text()


def write_tokenizers(out):
    """Folders with a tokenizer and files beside it, and 1,000 lines in which what they say makes a difference."""
    lines, rng = real_lines(1000), random.Random(0)
    odd = ["covid19", "covid19s", "NewYork", "newyork", "[E1]", "x[E1]y", "[e1]", "<X>", "CAFÉ", "café", "中文", "<B>"]
    texts = [" ".join(rng.choice([word, word, rng.choice(odd)]) for word in line.split()[:15]) for line in lines]
    (out / "tokenizers.json").write_text(json.dumps(texts))
    common = [word for word, _ in Counter(" ".join(lines).replace(".", "").split()).most_common(300)]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = list(
        dict.fromkeys([*special, *common, *letters, *("##" + c for c in letters), *"[]<>.,中文", "new", "cafe"])
    )

    def wordpiece(added=(), plain=(), **options):
        inner = tokenizers.BertWordPieceTokenizer({piece: i for i, piece in enumerate(vocab)}, **options)._tokenizer
        inner.add_special_tokens(list(added))
        inner.add_tokens(list(plain))
        return {"tokenizer": json.loads(inner.to_str())}

    flags = {"lstrip": True, "rstrip": True, "single_word": True, "normalized": False, "special": False}
    decoder = {"added_tokens_decoder": {str(len(vocab)): {"content": "covid19", **flags}}}
    bert, as_it_is = {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}
    covid = {"added_tokens": {"covid19": len(vocab), "NewYork": len(vocab) + 1}}
    both = {"added_tokens": {"[E1]": len(vocab), "covid19": len(vocab) + 1}}
    lower = {"do_lower_case": True}
    for name, files in {
        "added": covid | {"tokenizer_config": lower},
        "special": {"tokenizer_config": {"additional_special_tokens": ["[E1]", "<X>"], "bos_token": "<B>", **lower}},
        "map": both | {"special_tokens_map": {"additional_special_tokens": ["[E1]"]}, "tokenizer_config": lower},
        "decoder": {"tokenizer_config": decoder | {"do_lower_case": False}},
        "json": wordpiece(["[E1]"], ["covid19"]) | {"tokenizer_config": bert},
        "json_cased": wordpiece() | {"tokenizer_config": bert | {"do_lower_case": False}},
        "json_accents": wordpiece() | {"tokenizer_config": bert | {"do_lower_case": True, "strip_accents": False}},
        "json_chinese": wordpiece() | {"tokenizer_config": bert | {"tokenize_chinese_chars": False}},
        "json_as_it_is": wordpiece(["[E1]"], lowercase=False) | {"tokenizer_config": as_it_is | lower},
        "json_flags": wordpiece([], ["covid19"]) | {"tokenizer_config": as_it_is | decoder},
        "json_more": wordpiece(["[E1]"], ["covid19"]) | {"tokenizer_config": as_it_is | {"cls_token": "[CLS]"}}
        | {"added_tokens": {"covid19": len(vocab) + 1}, "special_tokens_map": {"additional_special_tokens": ["<X>"]}},
    }.items():  # fmt: skip
        folder = out / "tokenizers" / name
        folder.mkdir(parents=True)
        for file, content in {"config": {"model_type": "bert"}, **files}.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        if "tokenizer" not in files:
            (folder / "vocab.txt").write_text("\n".join(vocab))


@pytest.fixture(scope="module")
def created(run_peer, tmp_path_factory):
    """Models that `transformers` made, and its answers for 2,000 lines and a batch."""
    out = tmp_path_factory.mktemp("created")
    write_tokenizers(out)
    (out / "lines.txt").write_text("\n".join(" ".join(line.split()) for line in real_lines(2000)))
    run_peer("interop_create.py", out, out / "lines.txt")
    return out


@needs_peer
def test_tokenizers_have_the_ids_of_transformers_whatever_lies_beside_them(created, tmp_path):
    texts = json.loads((created / "tokenizers.json").read_text())
    for folder in sorted((created / "tokenizers").iterdir()):
        expected, size = json.loads((folder / "expected.json").read_text())
        loaded = tokenizer.load(folder)
        assert len(loaded.pieces) == size, folder.name
        for text, ids, theirs in zip(texts, loaded.encode(texts), expected, strict=True):
            assert ids.tolist() == theirs, (folder.name, text)


@needs_peer
@pytest.mark.parametrize("name", ["masked_lm", "encoder", "minilm"])
def test_models_of_transformers_come_in(created, run_peer, name, tmp_path):
    source = (created / "minilm.txt").read_text() if name == "minilm" else created / name
    recipe = small.get_config().to_dict()
    importing.import_model(Path(source), tmp_path / "run", tokenizer_file=None, recipe=recipe, log=print)
    run = open_run(tmp_path / "run", print)
    expected = np.load(created / ("minilm.npz" if name == "minilm" else "masked_lm.npz"), allow_pickle=False)
    ids = run.tokenizer.encode((created / "lines.txt").read_text().splitlines())
    assert [len(line) for line in ids] == expected["line_lengths"].tolist()
    np.testing.assert_array_equal(np.concatenate(ids), expected["line_ids"])
    assert run.tokenizer.special.pad == (0 if name == "minilm" else 3)

    @jax.jit
    def network(params, ids, mask, segments):
        def states_and_logits(bert):
            embedded = bert.encoder.embeddings(ids, segments, True)
            output, states = bert.encoder(ids, mask, segments)
            return jnp.stack([embedded, *states]), bert.mlm_logits(output)

        return make_model(run.config).apply({"params": params}, method=states_and_logits)

    mask = expected["mask"]
    hidden, logits = network(run.params(), *(jnp.asarray(expected[key]) for key in ("ids", "mask", "segments")))
    deviations = {"hidden states": np.abs(hidden - expected["hidden"])[:, mask].max()}
    assert hidden.shape[0] == run.config.model.num_layers + 1
    if name == "masked_lm":
        deviations["logits"] = np.abs(logits - expected["logits"])[mask].max()
    print(f"{name}: largest deviations {deviations}")
    assert max(deviations.values()) < 1e-4
    if name == "masked_lm":  # and back, with its tokenizer.json
        export(tmp_path / "run", tmp_path / "back")
        lines = (created / "lines.txt").read_text().splitlines()
        flat, lengths = np.concatenate(ids), [len(line) for line in ids]
        prompt, top5 = fill_mask_prompt(run)
        arrays = {key: expected[key] for key in ("ids", "mask", "segments", "logits")}
        np.savez(
            tmp_path / "back.npz", lines=lines, line_ids=flat, line_lengths=lengths, prompt=prompt, top5=top5, **arrays
        )
        run_peer("interop_check.py", tmp_path / "back", tmp_path / "back.npz")
