"""`hf:` inputs, from folders on a disk; the hub itself is out of the tests' reach."""

import json

import pytest

from sctd_jax.data import corpus, hub_datasets
from sctd_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "ds").mkdir()
    for split, texts in (("train", ["one ä", "two"]), ("test", ["three"])):
        lines = [json.dumps({"article": {"body": text}}) + "\n" for text in texts]
        (tmp_path / "ds" / f"{split}.jsonl").write_text("".join(lines))
    return tmp_path / "ds"


def read(text, field="article.body"):
    sources, counts = corpus.find_sources([text]), corpus.Counts()
    corpus.check(sources, text_field=field)
    return [chunk.text for chunk in corpus.read(sources, text_field=field, documents="file", counts=counts)]


def test_splits_of_a_dataset_are_read_and_a_change_is_noticed(folder):
    assert read(f"hf:{folder}") == ["one ä", "two"]
    assert read(f"hf:{folder}@test") == ["three"]
    (source,) = corpus.find_sources([f"hf:{folder}", f"hf:{folder}@train"])
    before = corpus.fingerprint(source)
    assert corpus.fingerprint(source) == before
    (folder / "train.jsonl").write_text('{"article": {"body": "another text"}}\n')
    assert corpus.fingerprint(source) != before


def test_what_cannot_be_loaded_is_one_line(folder, monkeypatch):
    for text, said in (
        (f"hf:{folder}@nope", "Bad split: nope"),
        ("hf:owner/none", "hf download --repo-type dataset owner/none"),
        ("hf:owner/none/config@train", "hf download --repo-type dataset owner/none"),
        ("hf:a b", "expected hf:NAME"),
    ):
        with pytest.raises(UserError, match=f"^input {text.partition('@')[0]}") as caught:
            read(text)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"^hf:{folder}, row 1: no text in the field 'body'"):
        read(f"hf:{folder}", "body")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match="needs datasets: pip install datasets"):
        next(hub_datasets.records("hf:x", "train"))
