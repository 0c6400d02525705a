"""Fine-tuned models for `transformers`, from our side and, in its own environment, from its side."""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest
import tokenizers
import yaml
from etils import epath
from safetensors.numpy import load_file
from seqeval.metrics.sequence_labeling import get_entities

from sctd_jax.config import MeshConfig
from sctd_jax.data import tokenizer
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.finetune import step
from sctd_jax.finetune.batches import assemble
from sctd_jax.finetune.config import PredictConfig, run_config
from sctd_jax.finetune.encode import encode
from sctd_jax.finetune.predicting import predict_file
from sctd_jax.hf import tokenizer_json
from sctd_jax.interop import exporting
from sctd_jax.interop.exporting import export
from sctd_jax.tasks.examples import FileSettings
from sctd_jax.tasks.splits import open_task
from sctd_jax.tasks.table import TASKS
from tests import finetuning
from tests.test_interop import needs_peer

CLASSES = {
    "cb": "AutoModelForSequenceClassification",
    "stsb": "AutoModelForSequenceClassification",
    "sst2": "AutoModelForSequenceClassification",
    "copa": "AutoModelForMultipleChoice",
    "squad1": "AutoModelForQuestionAnswering",
    "ner": "AutoModelForTokenClassification",
}


def write_entities(folder, rows):
    """Sentences with persons, places and others."""
    pieces = tokenizer.load(tokenizer.find(epath.Path(rows)))
    named = [piece[1:] for piece in pieces.pieces if re.fullmatch("\u2581[A-Z][a-z]{3,}", piece)]
    other = [piece[1:] for piece in pieces.pieces if re.fullmatch("\u2581[a-z]{3,}", piece)]
    folder.mkdir()
    for split, first in (("train", 0), ("dev", 1)):
        lines = []
        for i in range(first, 48, 2 - first):
            persons, places = named[: len(named) // 2], named[len(named) // 2 :]
            end = other[i % 5] if i % 3 else ""  # two of three first names are words of several tokens
            words = [(persons[i % len(persons)] + end, "B-PER"), (persons[(i + 1) % len(persons)], "I-PER")]
            words += [(other[i % len(other)], "O"), (places[i % len(places)], "B-LOC"), (other[i % 7], "O")]
            lines += [*map(" ".join, words), ""]
        (folder / f"{split}.conll").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def runs(rows, folders, tmp_path_factory):
    """(workdir, parameters of its best checkpoint, dev examples, labels) by task.

    They start from parameters with so much noise that each text has logits of its own.
    """
    root, found = tmp_path_factory.mktemp("finetuned"), {}
    start = finetuning.write_pretrained(root / "start", rows, scale=0.3)
    folders = {**folders, "ner": write_entities(root / "entities", rows)}
    for name in CLASSES:
        epochs = {"ner": 30}.get(name, 2)
        result, _ = finetuning.run(start, root / name, name, folders[name], learning_rate=1e-2, epochs=epochs)
        data = open_task(TASKS[name], str(folders[name]), FileSettings())
        found[name] = (root / name, result.state, data.dev["dev"], data.labels)
    return found


def exported(runs, name, out):
    export(epath.Path(runs[name][0]), out, step=None, force=False, log=lambda line: None)
    return out


def logits(name, workdir, params, examples, labels, **model):
    """Ours, of examples of one length."""
    pieces = tokenizer.load(tokenizer.find(epath.Path(workdir)))
    task = TASKS[name]
    features = encode(pieces, examples, task.head, 64)
    shape = step.shape_of(task, labels, len(features[0].rows))
    settings = finetuning.settings("run", name, "folder")
    config = run_config(settings, finetuning.CONFIG, 1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    batch = assemble(features, np.ones(len(features)), max(f.length for f in features), pieces.special.pad)
    return np.asarray(jax.jit(lambda p, b: step.logits(step.make_model(config, shape), p, b))(params, batch))


def spans(rows):
    """(type, text) of the entities among rows of word, label, prediction."""
    found = get_entities([row[2] for row in rows])
    return [[kind, " ".join(word for word, *_ in rows[start : end + 1])] for kind, start, end in found]


def words_of_several_tokens(workdir, examples, folder):
    """Rows of word and label that we predict for each of a few sentences, whose words are glued out of two."""
    glued = [["".join(pair) for pair in itertools.pairwise(e.words)] + ["."] for e in examples]
    (folder / "glued.jsonl").write_text("".join(json.dumps({"tokens": words}) + "\n" for words in glued))
    config = PredictConfig(str(workdir), str(folder / "glued.jsonl"), batch_size=8, mesh=MeshConfig(data=1))
    predict_file(config, folder / "glued.conll", lambda line: None)
    found = (folder / "glued.conll").read_text().removesuffix("\n\n").split("\n\n")
    assert len({line.split("\t")[1] for rows in found for line in rows.split("\n")}) > 2
    return [[line.split("\t") for line in rows.split("\n")] for rows in found]


@needs_peer
def test_transformers_sees_the_same_models(runs, run_peer, tmp_path, monkeypatch):
    def check(name, workdir, params, examples, labels, out, **model):
        # transformers pads to the longest row too; multiple choice takes one example here.
        some = examples[:1] if TASKS[name].head == "multiple_choice" else examples[:3]
        exported(runs, name, out)
        texts = {"first": [e.first for e in some], "second": [e.second for e in some] if some[0].second else None}
        if some[0].choices:
            texts = {"first": [some[0].first] * len(some[0].choices), "second": list(some[0].choices)}
        expected = {"class": CLASSES[name], **texts, "labels": list(TASKS[name].names or labels)}
        found = logits(name, workdir, params, some, labels, **model)
        assert np.ptp(found, axis=0 if found.shape[0] > 1 else 1).max() > 1e-3  # the texts make a difference
        expected["logits"] = found.tolist()
        if TASKS[name].head == "token_classification":
            written = (workdir / "predictions" / "dev-ner.conll").read_text().split("\n\n")
            expected["spans"] = [spans([line.split() for line in lines.splitlines()]) for lines in written[:3]]
            assert {kind for found in expected["spans"] for kind, _ in found} == {"PER", "LOC"}
            expected["words"] = words_of_several_tokens(workdir, some, tmp_path)
        out.with_suffix(".json").write_text(json.dumps(expected))

    for name, (workdir, state, examples, labels) in runs.items():
        check(name, workdir, state.params, examples, labels, tmp_path / name)

    # Pairs on a network of one segment, as which training took them: ids of 1 are clipped to it.
    workdir, state, examples, labels = runs["cb"]

    def first(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf[:1] if path[-1].key == "segment" else leaf, params
        )

    task_model = exporting.task_model

    def one_segment(*args):
        model = task_model(*args)
        config = dataclasses.replace(model.config, type_vocab_size=1)
        return dataclasses.replace(model, config=config, params=first(model.params))

    monkeypatch.setattr(exporting, "task_model", one_segment)
    check("cb", workdir, first(state.params), examples, labels, tmp_path / "one_segment", type_vocab_size=1)
    run_peer("interop_task_check.py", tmp_path)


def test_pairs_of_an_export_are_those_of_fine_tuning_whatever_the_tokenizer_does_with_them(rows):
    """BERT's own gives segment 1 to a model of one segment; RoBERTa's has two separators, and one segment."""
    names = {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    special = SpecialIds(*range(5))
    vocab = {piece: i for i, piece in enumerate([*names.values(), "a", "b"])}
    bert = tokenizers.BertWordPieceTokenizer(vocab)._tokenizer
    roberta = tokenizers.Tokenizer.from_str(bert.to_str())
    roberta.post_processor = tokenizers.processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    for kind in (bert, roberta, tokenizer_json.convert(tokenizer.find(epath.Path(rows)).read_bytes(), special)):
        a, b = (kind.encode(text, add_special_tokens=False).ids for text in ("a b", "b"))
        for segments, second, between in ((2, 1, 1), (1, 0, 1), (3, 1, 1), (1, 0, 2)):
            pair = tokenizer_json.framed(kind, special, segments, between).encode("a b", "b")
            assert pair.ids == [2, *a, *[3] * between, *b, 3]
            assert pair.type_ids == [0] * (len(a) + 1 + between) + [second] * (len(b) + 1)


def test_the_export_is_the_best_checkpoint_with_its_labels(runs, tmp_path):
    workdir, state, _, labels = runs["cb"]
    out = exported(runs, "cb", tmp_path / "model")
    tensors = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(tensors["classifier.weight"], state.params["classifier"]["kernel"].T)
    np.testing.assert_array_equal(tensors["bert.pooler.dense.bias"], state.params["pooler"]["bias"])
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(state.params))
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "entailment", "1": "contradiction", "2": "neutral"}
    assert list(labels) == ["entailment", "contradiction", "neutral"]
    best = json.loads((workdir / "result.json").read_text())["step"]
    assert int(state.step) == best
    card = (out / "README.md").read_text()
    assert "fine-tuned on cb with sctd_jax" in card and "pipeline_tag: text-classification" in card
    head = yaml.safe_load(card.split("---")[1])
    assert (head["language"], head["license"], head["datasets"]) == (["en"], "unknown", ["aps/super_glue"])
    assert head["metrics"] == ["accuracy", "f1"]
    reached = json.loads((workdir / "result.json").read_text())
    (index,) = head["model-index"]
    assert "base_model" not in head  # a folder of ours
    (result,) = index["results"]
    assert result["metrics"][1] == {"type": "f1", "value": round(reached["eval/macro_f1"], 6), "name": "macro_f1"}
    assert result["dataset"] == {
        "type": "aps/super_glue", "name": "CB", "config": "cb", "split": "validation",
    }  # fmt: skip


def test_a_checkpoint_that_is_not_there_and_a_head_that_transformers_has_not(runs, pretrained, folders, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint of step 99, found"):
        export(epath.Path(runs["cb"][0]), tmp_path / "model", step=99, force=False, log=print)
    finetuning.run(pretrained, tmp_path / "wic", "wic", folders["wic"], epochs=1)
    with pytest.raises(
        UserError, match=r"the classifier of wic reads the marked words; transformers has no such class"
    ):
        export(epath.Path(tmp_path / "wic"), tmp_path / "model", step=None, force=False, log=print)
    assert not (tmp_path / "model").exists()
