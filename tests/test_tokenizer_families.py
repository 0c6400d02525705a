"""Tokenizers of RoBERTa, XLM-R, CamemBERT and ModernBERT, held against `transformers` where it is installed."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sctd_jax.data import corpus, prepare, tokenizer
from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows, read_metadata
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.finetune.encode import encode
from sctd_jax.hf import write
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.probing import perplexity
from sctd_jax.tasks.examples import Example
from tests import helpers, tokenizer_folders
from tests.test_interop import needs_peer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families") / "folders"
    tokenizer_folders.write(root)
    return root


def asked(run_peer, root, texts):
    """Answers of `transformers` for the folders in `root`."""
    file = root.with_name("texts.json")
    file.write_text(json.dumps(texts))
    run_peer("interop_tokenizers.py", root, file)
    return json.loads(root.with_suffix(".json").read_text())


def edited(folder, out, change=None, **files):
    """A copy of a folder with other files beside it, and its `tokenizer.json` changed."""
    shutil.copytree(folder, out)
    for name, content in files.items():
        (out / f"{name}.json").write_text(json.dumps(content))
    if change:
        content = json.loads((out / "tokenizer.json").read_text())
        change(content)
        (out / "tokenizer.json").write_text(json.dumps(content))
    return out


def added(content):
    """Give a `tokenizer.json` tokens of somebody's own."""
    i = max(token["id"] for token in content["added_tokens"] + [{"id": len(content["model"]["vocab"]) - 1}]) + 1
    plain = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": True, "special": False}
    content["added_tokens"] += [{"id": i, "content": "covid19", **plain}, {"id": i + 1, "content": "<E>", **plain}]


def converted_later(content):
    """The stages of a SentencePiece model that a later converter wrote."""
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    steps = [content["normalizer"], {"type": "Strip", "strip_left": False, "strip_right": True}, spaces]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}


@needs_peer
def test_ids_and_pairs_are_those_of_transformers_and_so_are_those_of_an_export(folders, tmp_path, run_peer):
    texts = [*tokenizer_folders.texts(), "a covid19b <E>c covid19\ncovid19"]
    root = shutil.copytree(folders, tmp_path / "folders")
    asked(run_peer, root, texts)  # converts the SentencePiece models
    for name in ("xlm-roberta", "camembert"):
        shutil.move(root / name, tmp_path / name)
        shutil.copytree(tmp_path / "converted" / name, root / name)
        edited(root / name, root / f"{name}_later", converted_later)
    files = {"config": {"model_type": "camembert"}, "tokenizer_config": {"add_prefix_space": True}}
    edited(root / "camembert", root / "camembert_unnamed", added, **files)  # with <s>NOTUSED and others
    edited(root / "roberta", root / "roberta_added", added)
    as_it_is = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<X>"]}
    edited(root / "roberta_space", root / "as_it_is", added, tokenizer_config=as_it_is)
    # The hidden word takes the space before it along, as in the published files; transformers 5 leaves it where it has
    # only vocab.json.
    hidden = ["the <mask> of", "a\n<mask>b  <mask> <mask>", "the [MASK] of", "<s> and [CLS]"]
    theirs = asked(run_peer, root, [*texts, *hidden])
    count = len(texts)
    assert theirs["roberta_files"]["ids"][:count] == theirs["roberta"]["ids"][:count]
    theirs["roberta_files"] = theirs["roberta"]
    for folder in [*root.iterdir(), tmp_path / "xlm-roberta", tmp_path / "camembert"]:
        expected, loaded = theirs[folder.name], tokenizer.load(folder)
        assert len(loaded.pieces) == expected["length"], folder
        for text, ids, row in zip(texts, loaded.encode(texts), expected["ids"], strict=False):
            assert [loaded.special.cls, *ids.tolist(), loaded.special.sep] == row, (folder, text)
        examples = [Example(i, *pair) for i, pair in enumerate(itertools.pairwise(texts)) if all(pair)]
        features = encode(loaded, examples, "classification", 10_000, segments=1)
        for feature, example in zip(features, examples, strict=True):
            assert feature.rows[0].ids.tolist() == expected["pairs"][example.id], folder
        name, content = tokenizer.canonical(folder)
        kept, out = (tmp_path / part / folder.name for part in ("kept", "exported"))
        kept.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (kept / name).write_bytes(content)
        write.write_tokenizer(out, kept / name, segments=1, positions=128)
    ours = asked(run_peer, tmp_path / "exported", [*texts, *hidden])
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name] == expected, name


@pytest.mark.parametrize(
    ("name", "special", "separators"),
    [
        ("roberta", SpecialIds(1, 3, 0, 2, 4), 2),
        ("roberta_files", SpecialIds(1, 3, 0, 2, 4), 2),
        ("xlm-roberta", SpecialIds(1, 3, 0, 2, 1001), 2),
        ("camembert", SpecialIds(1, 3, 5, 6, 1004), 2),
        ("modernbert", SpecialIds(806, 803, 804, 805, 807), 1),
    ],
)
def test_special_ids_and_separators_are_those_of_the_folder(folders, name, special, separators):
    loaded = tokenizer.load(folders / name)
    assert loaded.special == special
    assert tokenizer.separators(loaded, segments=1) == separators
    assert tokenizer.separators(loaded, segments=2) == 1  # they tell the texts apart
    for text in ("<mask> [MASK]", "<s> [CLS] </s>", "a <pad> [PAD]"):  # spelled by a document
        assert not set(loaded.encode([text])[0].tolist()) & set(special.unmaskable)


@pytest.mark.parametrize("name", ["roberta", "modernbert"])
def test_words_of_byte_level_bpe(folders, name):
    """The space before a word is its first letter; the first word has none, a line's takes the line's end along."""
    loaded = tokenizer.load(folders / name)
    text = "The Congress, in 1850\ndid not\tsee été"
    tokens = loaded.encode_spans([text])[0]
    starts = loaded.word_start_V[tokens.ids_n].copy()
    starts[0] = True  # after [CLS], as `mask_tokens` has it
    words = np.split(tokens.spans_n2, np.flatnonzero(starts)[1:])
    assert [text[word[0, 0] : word[-1, 1]].strip() for word in words] == [
        "The", "Congress,", "in", "1850", "did", "not", "see", "été",
    ]  # fmt: skip
    assert not loaded.word_start_V[list(loaded.special.unmaskable)].any()
    assert loaded.word(loaded.encode([" the"])[0][0]) == "the"
    assert loaded.decode(loaded.encode([text])[0]) == text
    piece = loaded.pieces.index("Ã©")  # é
    assert loaded.word(piece) == "é"


def test_a_letter_that_looks_like_the_other_kinds_mark_begins_no_word(folders):
    pieces = tokenizer.load(folders / "xlm-roberta")
    maltese = [i for i, piece in enumerate(pieces.pieces) if piece.startswith("Ġ")]
    assert maltese and not pieces.word_start_V[maltese].any()
    assert pieces.word(maltese[0]) == pieces.pieces[maltese[0]]


@pytest.mark.parametrize(
    ("name", "files", "change", "said"),
    [
        ("roberta", {}, lambda c: c["pre_tokenizer"].update(add_prefix_space=True),
         "has add_prefix_space True, but transformers' RobertaTokenizer takes False where tokenizer_config.json does"),
        ("roberta", {"tokenizer_config": {"add_prefix_space": "no"}}, None, "add_prefix_space is 'no', expected true"),
        ("roberta", {}, lambda c: c.update(normalizer={"type": "Lowercase"}),
         "has a normalizer of its own, which transformers' RobertaTokenizer does not read; .*PreTrainedTokenizerFast"),
        ("roberta", {}, lambda c: c.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
         "has a normalizer of its own, which transformers' RobertaTokenizer does not read"),
        ("roberta", {"config": {"model_type": "xlm-roberta"}}, None,
         "has a BPE model, a pre_tokenizer of its own, which transformers' XLMRobertaTokenizer does not read"),
        ("roberta", {"tokenizer_config": {"added_tokens_decoder": {}}},
         lambda c: c["added_tokens"].append(dict(c["added_tokens"][0], id=800, content="<E>")),
         "'<E>' is not in added_tokens_decoder .* transformers' RobertaTokenizer goes"),
        ("roberta_files", {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}, None,
         "tokenizer_class is 'GPT2Tokenizer', supported are RobertaTokenizer: "),
        ("modernbert", {"config": {"model_type": "roberta"}, "tokenizer_config": {}}, None,
         "has a normalizer of its own, which transformers' RobertaTokenizer"),
        ("xlm-roberta", {"config": {"model_type": "bert"}}, None, r"no special piece \[PAD\] or <pad>"),
        ("xlm-roberta", {"tokenizer_config": {"tokenizer_class": "AlbertTokenizer"}}, None,
         "tokenizer_class is 'AlbertTokenizer', supported are XLMRobertaTokenizer, CamembertTokenizer, Tokenizers"),
    ],
)  # fmt: skip
def test_what_a_class_would_read_otherwise_is_refused(folders, tmp_path, name, files, change, said):
    with pytest.raises(UserError, match=said):
        tokenizer.load(edited(folders / name, tmp_path / "x", change, **files))


def test_halves_of_a_vocabulary_and_models_with_symbols_of_their_own_are_refused(folders, tmp_path):
    folder = edited(folders / "roberta_files", tmp_path / "x")
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match=r"vocab.json: no vocabulary of byte-level BPE"):
        tokenizer.load(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges.txt is missing beside it"):
        tokenizer.load(folder)
    shutil.copy(folders / "xlm-roberta" / "sentencepiece.bpe.model", tmp_path / "own.model")
    (tmp_path / "config.json").write_text('{"model_type": "camembert"}')
    assert tokenizer.load(tmp_path / "own.model").special.cls == 5
    with pytest.raises(UserError, match="holds no tokenizer"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "camembert"])
def test_rows_of_a_family_have_its_special_pieces_and_all_of_the_text(folders, speeches, tmp_path, name):
    lines, loaded = [], tokenizer.load(folders / name)
    data = helpers.data(
        input=",".join(speeches[:4]), tokenizer=str(folders / name), documents="paragraph", heldout_share=0.05
    )
    prepare.prepare(data, len(loaded.pieces), tmp_path / "rows", lines.append)
    special = loaded.special
    tokens = 0
    for split in (TRAIN, HELD_OUT):
        rows_BN = Rows(tmp_path / "rows", split).read(range(len(Rows(tmp_path / "rows", split))))
        assert (rows_BN[:, 0] == special.cls).all() and not (rows_BN == special.mask).any()
        last_B = (rows_BN != special.pad).sum(1) - 1
        assert (rows_BN[np.arange(len(rows_BN)), last_B] == special.sep).all()
        tokens += (~np.isin(rows_BN, special.unmaskable)).sum()
    metadata = read_metadata(tmp_path / "rows")
    assert metadata.tokens == tokens
    if loaded.is_byte_level:
        assert metadata.unknown_letters == 0
        assert not [line for line in lines if "warning" in line]


def test_rows_of_byte_level_bpe_do_not_depend_on_where_reading_cuts_a_text(folders, speeches, tmp_path, monkeypatch):
    loaded = tokenizer.load(folders / "modernbert")
    (tmp_path / "x.txt").write_text("  \n\n".join(Path(speech).read_text() for speech in speeches[:2]))
    sources = ",".join([str(tmp_path / "x.txt"), *speeches[2:8]])
    data = helpers.data(input=sources, tokenizer=str(folders / "modernbert"), documents="file", heldout_share=0.2)
    found = []
    for chars in (1 << 18, 500):
        monkeypatch.setattr(corpus, "CHUNK_CHARS", chars)
        prepare.prepare(data, len(loaded.pieces), tmp_path / str(chars), lambda line: None)
        found.append(Rows(tmp_path / str(chars), TRAIN).read(range(len(Rows(tmp_path / str(chars), TRAIN)))))
    np.testing.assert_array_equal(*found)


def test_prepare_says_what_byte_level_bpe_knows_as_bytes_only(folders, tmp_path):
    lines, text = [], "the 字 of 丁 \u0436 " * 40
    (tmp_path / "x.txt").write_text("\n\n".join(f"{i} {text}" for i in range(400)))
    data = helpers.data(
        input=str(tmp_path / "x.txt"), tokenizer=str(folders / "roberta"), documents="paragraph", heldout_share=0.2
    )
    prepare.prepare(data, 800, tmp_path / "rows", lines.append)
    (warning,) = [line for line in lines if "warning" in line]
    assert "have no piece of their own and take several tokens each, bytes of them: " in warning
    assert "(字 U+5B57 " in warning
    assert [line for line in lines if line.startswith("unknown to the tokenizer: 0 of ")]


def test_a_run_with_byte_level_bpe_of_its_own_masks_words_and_prints_text(speeches, tmp_path):
    """Text -> byte_bpe -> rows -> whole words -> fill-mask and pseudo-perplexity."""
    data = helpers.data(
        input=",".join(speeches[:6]), tokenizer_type="byte_bpe", documents="paragraph", heldout_share=0.03
    )
    lines = []
    prepare.prepare(data, 700, tmp_path / "rows", lines.append)
    assert "training a byte_bpe tokenizer of 700 pieces" in lines
    config = helpers.config(
        data__rows=str(tmp_path / "rows"), model__vocab_size=700, model__num_layers=1, dropping__method="full",
        masking__whole_word=True, train__steps=1, train__eval_every=1, train__checkpoint_every=1,
    )  # fmt: skip
    train_and_evaluate(config, tmp_path / "run", lines.append)
    examples = lines[lines.index("fill-mask on held-out text (the model's guesses, and the word that was hidden):") :]
    assert any(" [MASK] " in line for line in examples)
    assert not any(letter in line for line in examples for letter in ("\u0120", "[MASK]  ", "  [MASK]"))
    (tmp_path / "text.txt").write_text("The Congress of 1850.\nété\n")
    settings = perplexity.Settings(str(tmp_path / "text.txt"), rows=10, every_checkpoint=False, batch_size=4)
    (found,) = perplexity.measure([str(tmp_path / "run")], settings, lambda line: None)["models"]
    loaded = tokenizer.load(tmp_path / "rows")
    assert found["tokens"] == sum(map(len, loaded.encode(["The Congress of 1850.", "été"])))
    assert (found["characters"], found["unknown_tokens"]) == (24, 0)
