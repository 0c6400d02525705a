"""Export, seen from our side and, in an environment of its own, from `transformers`' (tests/interop_check.py)."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sctd_jax.data import corpus, prepare
from sctd_jax.train.run import load_run
from sctd_jax.train.state import make_model
from tests import helpers

# Made by .ci/run or `make interop`; a Python that has torch and transformers.
PEER = Path(os.environ.get("SCTD_INTEROP_PYTHON", helpers.ROOT / ".venv-interop" / "bin" / "python"))


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def workdir(request, speeches, tmp_path_factory):
    """A short run on real text, with a tokenizer of each kind."""
    folder = tmp_path_factory.mktemp(f"interop-{request.param}")
    settings = prepare.Settings(tuple(speeches), "text", "paragraph", 32, 2000, "", request.param, 0.02, 0)
    prepare.prepare(settings, folder / "rows", lambda line: None)
    where = ["--config=tests/small.py", f"--workdir={folder / 'run'}", f"--config.data.rows={folder / 'rows'}"]
    changes = {"model.vocab_size": 2000, "optimizer.learning_rate": 0.01}
    changes |= {f"train.{name}": 30 for name in ("steps", "eval_every", "checkpoint_every")}
    done = helpers.run_module("sctd_jax.main", *where, *(f"--config.{k}={v}" for k, v in changes.items()))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def export(workdir, out, *args, code=0):
    done = helpers.run_module("sctd_jax.interop.huggingface", "export", f"--workdir={workdir}", f"--out={out}", *args)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    export(workdir, out)
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
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_act"]) == ("bert", 4, "gelu")


def test_the_tensors_are_the_parameters_bit_for_bit(exported, workdir):
    params = load_run(workdir, None, print).state.params
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


def test_an_existing_folder_is_replaced_only_by_force(exported, workdir, tmp_path):
    out = tmp_path / "model"
    export(workdir, out)
    (out / "mine.txt").write_text("keep")
    refused = export(workdir, out, code=2)
    assert "exists already" in refused.stderr
    assert (out / "mine.txt").exists()
    export(workdir, out, "--force")
    assert not (out / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_step_that_is_not_there_and_a_folder_that_is_no_run(workdir, tmp_path):
    missing = export(workdir, tmp_path / "x", "--step=7", code=2)
    assert "no checkpoint of step 7, found [30]" in missing.stderr
    assert "not the workdir of a run" in export(tmp_path, tmp_path / "x", code=2).stderr
    assert list(tmp_path.iterdir()) == []


def expectations(workdir, path):
    """What our side says of real lines, a padded batch with two segments, and a prompt."""
    run = load_run(workdir, None, print)
    counts, texts = corpus.Counts(), []
    for chunk in corpus.read(corpus.find_sources([]), text_field="", documents="paragraph", counts=counts):
        texts.append(" ".join(chunk.text.split())[:400])
        if len(texts) == 2000:
            break
    ids = run.processor.encode(texts)
    flat = list(itertools.chain.from_iterable(ids))
    batch = np.full((4, 32), run.special["pad"])
    segments = np.zeros((4, 32), np.int64)
    for row, length in enumerate((32, 25, 18, 9)):
        batch[row, :length] = [run.special["cls"], *flat[100 * row :][: length - 2], run.special["sep"]]
        segments[row, length // 2 : length] = 1
    prompt = f"The {run.processor.id_to_piece(run.special['mask'])} of the United States"
    before, after = prompt.split(" " + run.processor.id_to_piece(run.special["mask"]))
    prompt_ids = [run.special["cls"], *run.processor.encode(before), run.special["mask"]]
    at = len(prompt_ids) - 1
    prompt_ids += [*run.processor.encode(after), run.special["sep"]]

    @jax.jit
    def logits(ids, mask, segments):
        def network(bert):
            return bert.mlm_logits(bert.encoder(ids, mask, segments)[0])

        return make_model(run.config).apply({"params": run.state.params}, method=network)

    mask = batch != run.special["pad"]
    prompt_row = jnp.array([prompt_ids])
    scores = logits(prompt_row, prompt_row >= 0, jnp.zeros_like(prompt_row))[0, at]
    np.savez(
        path, lines=texts, line_ids=np.array(flat), line_lengths=[len(x) for x in ids], ids=batch, mask=mask,
        segments=segments, logits=logits(jnp.asarray(batch), jnp.asarray(mask), jnp.asarray(segments)), prompt=prompt,
        top5=np.argsort(-np.asarray(scores), kind="stable")[:5],
    )  # fmt: skip


@pytest.mark.skipif(not PEER.exists(), reason="no environment with transformers: make interop")
def test_transformers_sees_the_same_model(exported, workdir, tmp_path):
    expectations(workdir, tmp_path / "expected.npz")
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [PEER, helpers.ROOT / "tests" / "interop_check.py", exported, tmp_path / "expected.npz"],
        env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
