"""Probes without fine-tuning: linear probes by layer, drift and pseudo-perplexity, through their command."""

import codecs
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sctd_jax import plot, probe
from sctd_jax.data.rows import HELD_OUT, METADATA_FILE, Rows
from sctd_jax.finetune import batches
from sctd_jax.finetune.encode import Feature, Row
from sctd_jax.hf import config_json as bert_config
from sctd_jax.hf.read import read_folder
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.models import open_run
from sctd_jax.pretrain.evaluation import EVAL_SEED, selection_keys
from sctd_jax.pretrain.model import make_model
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.pretrain.step import mask_batch, select
from sctd_jax.probing import drift, layers, perplexity
from sctd_jax.train.workdir import CONFIG_FILE, TASK_FILE
from tests import helpers, task_files

SPECIAL = helpers.SPECIAL
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
PIECES += [*(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), '"']
HF = helpers.config(model__vocab_size=len(PIECES), model__num_layers=1, dropping__method="full")


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """A run of four layers that drops tokens, after 2 steps; both checkpoints are kept."""
    config = helpers.config(
        dropping__method="drop", data__rows=str(rows), train__steps=2, train__eval_every=1, train__checkpoint_every=1,
        train__keep_checkpoints=3, optimizer__learning_rate=0.002, model__initializer_range=0.2, mesh__data=1,
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("runs") / "dropping"
    train_and_evaluate(config, workdir, lambda line: None)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of transformers with an MLM head: one layer, letters."""
    folder = tmp_path_factory.mktemp("hf") / "letters"
    folder.mkdir()
    params = jax.tree.map(np.asarray, helpers.moved(helpers.initial(HF).params, 0.2))
    save_file(helpers.bert_tensors(HF.model, params), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(bert_config.to_json(HF.model, helpers.SPECIAL)))
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    return folder


def command(out, *arguments):
    """The JSON of a command that succeeds."""
    assert probe.main([*map(str, arguments), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{arguments[0]}.json", f"{arguments[0]}.png"]
    assert (out / f"{arguments[0]}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / f"{arguments[0]}.json").read_text())


def test_names_are_short_where_they_can_be():
    assert plot.names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert plot.names(["/r/x/a", "y/a", "c", "a"]) == ["x/a", "y/a", "c", "a"]
    assert plot.names(["gs://b/x/", "."]) == ["x", "."]


# Layers


def test_layers_of_two_models(run, folder, tmp_path, capsys):
    task_files.write_task(tmp_path, "sst2", {"train": 64, "dev": 16})
    settings = ("--task", "sst2", "--data-dir", tmp_path, "--examples", "63", "--batch-size", "6")
    found = command(tmp_path / "out", "layers", run, folder, *settings)
    assert (found["training_examples"], found["dev_examples"], found["majority"]) == (63, {"dev": 16}, 0.5)
    assert (found["settings"]["task"], found["metrics"]) == ("sst2", ["accuracy"])
    assert [(model["model"], model["layers"]) for model in found["models"]] == [("dropping", 4), ("letters", 1)]
    for model in found["models"]:
        for pooling in ("cls", "mean"):
            assert len(model[pooling]["accuracy"]) == model["layers"] + 1
            assert model[pooling]["score"] == model[pooling]["accuracy"]
            assert all(0 <= score <= 1 for score in model[pooling]["score"])
        # The embedding of [CLS] knows nothing of the sentence; those of its words or letters, averaged, much.
        assert model["cls"]["accuracy"][0] == 0.5
        assert model["mean"]["accuracy"][0] > 0.8
        assert model["after"] == ["embeddings", *(f"layer {number}" for number in range(model["layers"]))]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("dropping: cls ") and said[1].endswith("; majority 0.500")
    assert "mean 1.000 after embeddings, " in said[0]
    assert said[-2:] == [str(tmp_path / "out" / "layers.json"), str(tmp_path / "out" / "layers.png")]


def test_layers_of_a_regression(folder, tmp_path):
    task_files.write_task(tmp_path, "stsb", {"train": 48, "dev": 12})
    found = command(tmp_path / "out", "layers", folder, "--task", "stsb", "--data-dir", tmp_path)
    (model,) = found["models"]
    assert found["majority"] == 0.0
    assert model["max_length"] == 32  # all the positions that it has
    assert model["cls"]["score"][0] == 0.0
    assert model["mean"]["score"][1] > 0.5
    mean = np.mean([model["mean"]["pearson"], model["mean"]["spearman"]], axis=0)
    np.testing.assert_allclose(model["mean"]["score"], mean)


def test_the_majority_is_scored_by_the_tasks_metric(folder, tmp_path):
    task = task_files.write_task(tmp_path, "mrpc", {"train": 8, "dev": 5})  # labels of dev: 1 0 1 0 1
    found = command(tmp_path / "out", "layers", folder, "--task", "mrpc", "--data-dir", task)
    # Always 1: accuracy 3/5, and F1 of precision 3/5 and recall 1 is 3/4.
    assert found["majority"] == pytest.approx((0.6 + 0.75) / 2)


def test_pooled_states_are_those_of_the_plain_encoder_whatever_the_padding(rows):
    config = helpers.config().model
    params = helpers.moved(helpers.initial(helpers.config()).params, 0.1)["encoder"]
    ids = [np.array([2, *range(10, 10 + n), 3], np.int32) for n in (3, 9)]
    features = [Feature(0, (Row(ids[0], 4),)), Feature(1, (Row(ids[1], len(ids[1])),))]
    states = layers.jit_pooled_states(config)
    found = [np.asarray(states(params, batches.assemble(features, np.ones(2), n, 0))) for n in (11, 32)]
    assert found[0].shape == (config.num_layers + 1, 2, 2, config.hidden_size)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    bert = MaskedLm(config, 0, 0)

    @jax.jit
    def plain(ids, mask, segments):
        return bert.apply(
            {"params": {"encoder": params}}, ids, mask, segments, method=lambda bert, *a: bert.encoder(*a)
        )

    for i, segments in ((0, [0, 0, 0, 0, 1]), (1, [0] * 11)):
        _, after = plain(ids[i][None], np.ones((1, len(ids[i])), bool), np.array([segments]))
        for layer, x in enumerate(after, start=1):
            np.testing.assert_allclose(found[0][layer, 0, i], x[0, 0], atol=1e-5)
            np.testing.assert_allclose(found[0][layer, 1, i], np.mean(x[0], axis=0), atol=1e-5)


def test_a_probe_leaves_out_what_differs_by_rounding_only():
    labels = np.array([0.0, 1.0] * 20)
    x_ED = np.stack([1.0 + 1e-7 * labels, np.random.default_rng(0).normal(size=40)], axis=1).astype(np.float32)
    x_ED[:, 1] = 3.0
    logits = layers.fit(x_ED, labels, "classification", 2)(x_ED)
    np.testing.assert_allclose(logits, math.log(0.5), atol=1e-6)
    assert (layers.fit(x_ED, labels, "regression", 0)(x_ED) == 0.5).all()


def test_a_probe_without_examples_of_a_class_never_says_it():
    x_ED = np.array([[-1.0], [1.0]] * 30, np.float32)
    logits = layers.fit(x_ED, np.array([0.0, 2.0] * 30), "classification", 3)(x_ED[:2])
    assert logits.shape == (2, 3)
    assert logits.argmax(axis=1).tolist() == [0, 2]
    assert (logits[:, 1] < -600).all()


# Perplexity


def hidden_one_by_one(params, config, ids):
    """The plain loop: no batches, no padding, all positions of the last layer."""
    losses, forward = [], jax.jit(MaskedLm(config, 0, 0).apply)
    for at in [i for i, token in enumerate(ids) if token not in (0, 2, 3, 4)]:
        hidden = np.where(np.arange(len(ids)) == at, SPECIAL.mask, ids)[None]
        logits = forward({"params": params}, hidden, np.ones(hidden.shape, bool))
        losses.append(-jax.nn.log_softmax(logits[0, at])[ids[at]])
    return np.array(losses)


def test_every_token_is_hidden_once_and_batches_change_nothing():
    config = HF.model
    params = helpers.moved(helpers.initial(HF).params, 0.2)
    rows = [np.array(ids, np.int32) for ids in ([2, 9, 1, 9, 3, 30, 3], [2, 3], [2, 7, 3], [2, *range(10, 20), 4, 3])]
    score = perplexity.jit_token_losses(config, SPECIAL.mask)

    def losses(batch_size):
        return perplexity.token_losses(lambda *batch: score(params, *batch), rows, SPECIAL, batch_size, 32)

    expected = [hidden_one_by_one(params, config, row) for row in rows]
    assert [len(found) for found in expected] == [4, 0, 1, 10]
    for batch_size in (3, 32):
        for found, wanted in zip(losses(batch_size), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_perplexity_of_every_checkpoint(run, rows, tmp_path, capsys):
    found = command(tmp_path / "out", "perplexity", run, "--rows", "2", "--every-checkpoint")
    (model,) = found["models"]
    points = model["points"]
    assert [point["step"] for point in points] == [1, 2]
    assert model["text"] == f"held-out rows in {rows}"
    assert points[1]["loss"] != points[0]["loss"]
    loaded, held_out = open_run(run, print), Rows(rows, HELD_OUT)
    ids = held_out.read([0, len(held_out) // 2])
    assert model["texts"] == 2
    assert model["tokens"] == (ids > 4).sum() + (ids == 1).sum()
    text = [loaded.tokenizer.decode(part[part > 3]) for row in ids for part in np.split(row, np.flatnonzero(row == 3))]
    assert model["characters"] == sum(map(len, text))
    losses = np.concatenate([hidden_one_by_one(loaded.params(1), loaded.config.model, row[row > 0]) for row in ids])
    assert points[0]["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert points[0]["pppl"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    bits = losses.sum() / math.log(2) / model["characters"]
    assert points[0]["bits_per_character"] == pytest.approx(bits, rel=1e-5)
    said = capsys.readouterr().out
    assert "dropping at step 2: PPPL" in said
    assert "never compare it between models with different tokenizers" in said and "same text" in found["note"]


def test_perplexity_of_a_text_by_models_with_different_tokenizers(run, folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the people\n\n  " + "abc " * 15 + "ж\nnot read\n")
    found = command(tmp_path / "out", "perplexity", run, folder, "--text", text, "--rows", "2")
    ours, theirs = found["models"]
    assert ours["characters"] == theirs["characters"] == len("the people") + 15 * 4 + 1
    # A letter is a token, and what is no letter unknown; rows have room for 30 of them, and none is left out.
    assert (theirs["texts"], theirs["tokens"], theirs["unknown_tokens"]) == (2, 9 + 46, 1)
    assert [point["step"] for point in ours["points"] + theirs["points"]] == [2, None]
    for model in found["models"]:
        (point,) = model["points"]
        bits = point["loss"] * model["tokens"] / math.log(2) / model["characters"]
        assert point["bits_per_character"] == pytest.approx(bits)
        assert point["pppl"] == pytest.approx(math.exp(point["loss"]))


# Drift


def test_drift_of_a_run(run, tmp_path, capsys):
    found = command(tmp_path / "out", "drift", run, "--rows", "20")  # as many as the run's evaluation takes
    (model,) = found["models"]
    by_layer = model["layers"]
    assert (model["method"], model["layers_missing"]) == ("drop", None)
    assert model["local"]["step"] == model["global"]["step"] == [0, 1, 2]
    assert (by_layer["step"], by_layer["rows"], by_layer["layer"]) == (2, 20, [1, 2, 3])
    ends = model["local"]["cosine"][-1], model["global"]["cosine"][-1]
    np.testing.assert_allclose(by_layer["cls"]["cosine"][-2:], ends, atol=1e-5)
    assert max(ends) < 0.999
    assert min(by_layer["cls"]["kl"] + by_layer["mean"]["kl"]) > -1e-6
    said = capsys.readouterr().out
    assert "dropping (drop): local cosine " in said and f"{ends[1]:.4f} at step 2" in said


def test_drift_by_layer_is_of_the_k_of_its_step_and_of_rows_from_all_over(run, rows, tmp_path, monkeypatch):
    workdir, seen = shutil.copytree(run, tmp_path / "run"), []
    config = json.loads((workdir / CONFIG_FILE).read_text())
    config["dropping"]["keep_schedule"] = "0:12,1:24"
    (workdir / CONFIG_FILE).write_text(json.dumps(config))

    def measured(config, *_):
        def compare(params, importance_V, tokens_BN, rows_B):
            seen.append((config.num_kept, rows_B))
            return np.ones((2, 3, 2, 16))

        return compare

    monkeypatch.setattr(drift, "jit_compare", measured)
    assert drift.by_layer(open_run(workdir, print), 20, print)["rows"] == 20
    held_out = len(Rows(rows, HELD_OUT))
    assert [kept for kept, _ in seen] == [24, 24]
    np.testing.assert_array_equal(np.concatenate([rows_B for _, rows_B in seen])[:20], np.arange(20) * held_out // 20)


def test_the_curve_is_there_without_the_rows(run, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "run")
    config = json.loads((workdir / CONFIG_FILE).read_text())
    config["data"]["rows"] = str(tmp_path / "gone")
    (workdir / CONFIG_FILE).write_text(json.dumps(config))
    lines = [
        {"step": s, "seconds": s, f"eval/{kind}_local": v, f"eval/{kind}_global": v / 2}
        for kind, points in (("drift", ((0, 1.0), (5, 0.5), (9, 0.9))), ("cosine", ((5, 0.75), (9, 0.25))))
        for s, v in points
    ]  # begun by earlier code, which called it drift; 5 and 9 again, after a kill
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = command(tmp_path / "out", "drift", workdir)
    (model,) = found["models"]
    assert model["local"] == {"step": [0, 5, 9], "cosine": [1.0, 0.75, 0.25]}
    assert model["global"] == {"step": [0, 5, 9], "cosine": [0.5, 0.375, 0.125]}
    assert model["layers"] is None
    assert "gone holds no prepared rows" in model["layers_missing"]
    assert "run: no layers: " in capsys.readouterr().out


@pytest.mark.parametrize("method", ["drop", "random_ltd"])
def test_keeping_all_tokens_is_no_drift(method):
    config = helpers.config(dropping__method=method, dropping__drop_rate=0.0)
    cosine, kl, _ = compared(config)
    assert cosine.shape == kl.shape == (config.model.num_layers - config.drop_layers[0], 2, 4)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    np.testing.assert_allclose(kl, 0, atol=1e-5)


@pytest.mark.parametrize("method", ["drop", "random_ltd"])
def test_drift_by_layer_is_that_of_two_whole_passes(method):
    config = helpers.config(dropping__method=method)
    cosine, kl, state = compared(config)

    @jax.jit
    def passes(state, rows_B):
        batch = mask_batch(config, SPECIAL, jax.random.key(EVAL_SEED), tokens(), None, rows_B)
        kept = select(config, state.importance_V, batch, selection_keys(rows_B), None)
        full, drop = (
            make_model(config).apply(
                {"params": state.params}, batch.input_ids_BN, batch.mask_BN, method=whole_pass, kept_BK=kept_BK
            )
            for kept_BK in (None, kept)
        )
        return batch.mask_BN, kept, full, drop

    real, kept, full, drop = jax.tree.map(np.asarray, passes(state, jnp.arange(4)))
    for s, layer in enumerate(range(config.drop_layers[0], config.model.num_layers)):
        for row in range(4):
            whole = drop[layer].shape[1] == 32
            shown = real[row] if whole else real[row][np.asarray(kept)[row]]
            for pooling, vectors in enumerate((
                (full[layer][row, 0], drop[layer][row, 0]),
                (np.mean(full[layer][row][real[row]], axis=0), np.mean(drop[layer][row][shown], axis=0)),
            )):  # fmt: skip
                a, b = (np.asarray(vector, np.float64) for vector in vectors)
                found = cosine[s, pooling, row], kl[s, pooling, row]
                p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
                wanted = a @ b / np.sqrt((a @ a) * (b @ b)), (p * np.log(p / q)).sum()
                np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert cosine[-1].min() < 0.999  # of the last layer: there is something to see


def tokens():
    return helpers.random_rows(4, pad=True)


def compared(config):
    """(cosine, KL, state) of a run's first step with parameters that were moved."""
    state = helpers.initial(config)
    state = state.replace(params=helpers.moved(state.params, 0.2))
    compare = drift.jit_compare(config, SPECIAL, None)
    return (*np.asarray(compare(state.params, state.importance_V, tokens(), jnp.arange(4))), state)


def whole_pass(bert, *args, kept_BK):
    return bert.encoder(*args, kept_BK=kept_BK)[1]


# What is refused


def refused(capsys, *arguments):
    assert probe.main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("sst3", "--task must be one of cola, sst2, .*; found 'sst3'"),
        ("copa", "--task copa has a multiple_choice head"),
        ("squad1", "--task squad1 has a span head"),
        ("wic", "--task wic has marked words"),
        ("rte", "RTE"),
    ],
)
def test_a_task_that_cannot_be_probed(task, message, folder, tmp_path, capsys):
    out = tmp_path / "out"
    said = refused(capsys, "layers", folder, "--task", task, "--data-dir", tmp_path, "--out", out)
    assert re.search(message, said)
    assert not out.exists()


def test_models_that_cannot_be_probed(run, folder, tmp_path, capsys, monkeypatch):
    out = ("--out", tmp_path / "out")
    text = tmp_path / "text.txt"
    text.write_text("some words\n")
    assert "expected the workdir of a run or a folder" in refused(capsys, "perplexity", tmp_path, *out)
    assert "has no held-out rows of its own: give --text" in refused(capsys, "perplexity", folder, *out)
    headless = shutil.copytree(folder, tmp_path / "headless")
    tensors = helpers.bert_tensors(HF.model, {"encoder": read_folder(folder).params()["encoder"]})
    save_file(tensors, headless / "model.safetensors")
    assert "headless has no MLM head" in refused(capsys, "perplexity", headless, "--text", text, *out)
    tuned = shutil.copytree(run, tmp_path / "tuned")
    (tuned / TASK_FILE).write_text("{}")
    for name in ("drift", "perplexity"):
        assert "tuned is a fine-tuned model" in refused(capsys, name, tuned, *out)
    lost = shutil.copytree(run, tmp_path / "lost")
    (lost / METADATA_FILE).unlink()
    monkeypatch.setattr("sctd_jax.pretrain.workdir.open_data", lambda *_: pytest.fail("rows were prepared first"))
    assert f"{METADATA_FILE}" in refused(capsys, "perplexity", lost, *out)
    monkeypatch.undo()
    full = shutil.copytree(run, tmp_path / "full")
    (full / CONFIG_FILE).write_text((full / CONFIG_FILE).read_text().replace('"drop"', '"full"'))
    assert "full drops no tokens" in refused(capsys, "drift", full, *out)
    (full / "metrics.jsonl").unlink()
    (full / CONFIG_FILE).write_text((full / CONFIG_FILE).read_text().replace('"full"', '"drop"'))
    assert "no eval/cosine_local, eval/cosine_global in its metrics" in refused(capsys, "drift", full, *out)


def test_texts_that_cannot_be_scored(folder, tmp_path, capsys):
    arguments = ("perplexity", folder, "--out", tmp_path / "out", "--text")
    assert "nowhere.txt: No such file" in refused(capsys, *arguments, tmp_path / "nowhere.txt")
    text = tmp_path / "text.txt"
    text.write_bytes(b"\n \n")
    assert "no text in it" in refused(capsys, *arguments, text)
    for raw in (
        codecs.BOM_UTF8 + b"a \xc3\xa4\r\nb\r\nc",
        "\ufeffa ä\nb\nc\n".encode("utf-16-le"),
        "a ä\rb\rc\r".encode(),
    ):
        text.write_bytes(raw)  # by its mark and whatever ends its lines
        assert perplexity.read_lines(str(text), 2) == ["a ä", "b"]
    text.write_bytes(codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0")
    assert "text.txt: 1 sequences that are not of the encoding" in refused(capsys, *arguments, text)
    text.write_bytes(b"fine\nb\xffd\n")
    assert "text.txt, line 2: not UTF-8" in refused(capsys, *arguments, text)


def test_a_sample_of_one_label_is_said(folder, tmp_path, capsys):
    task_files.write_task(tmp_path, "sst2")
    out = ("--out", tmp_path / "out", "--data-dir", tmp_path)
    said = refused(capsys, "layers", folder, "--task", "sst2", "--examples", "1", *out)
    assert "--examples 1: all 1 training examples have the same label" in said
