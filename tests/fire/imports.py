"""Models that come in: config.json, weights and tokenizer files that are damaged, hostile or absurd.

Each is the export of the shared run with one thing changed.
"""

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.fire.case import EITHER, Case, damage, special, write

COMMAND = "sctd_jax.interop.huggingface import --from $here/model --workdir $here/out --config tests/small.py"
WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]  # of the copied folder


def _case(name: str, change: Change, *words: str, status: int | tuple[int, ...] = 2, new: tuple[str, ...] = ()) -> Case:
    def make(here: Path, base: Path) -> None:
        change(Path(shutil.copytree(base / "exported", here / "model")))

    return Case(name, COMMAND, make, status, words, new)


def _set(file: str, **fields: Any) -> Change:
    """Change fields of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text()) | fields
        (folder / file).write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    return change


def _config(name: str, *words: str, status: int = 2, **fields: Any) -> Case:
    new = () if status else ("out", "out/*")
    return _case(f"config.json: {name}", _set("config.json", **fields), *words, status=status, new=new)


def _options(name: str, *words: str, status: int = 2, **fields: Any) -> Case:
    new = () if status else ("out", "out/*")
    return _case(f"options: {name}", _by_json(_set("tokenizer_config.json", **fields)), *words, status=status, new=new)


def _by_json(change: Change) -> Change:
    """The same folder with `tokenizer.json` alone."""

    def both(folder: Path) -> None:
        (folder / "tokenizer.model").unlink()
        change(folder)

    return both


def _word_piece(content: dict, unk: str, longest: int) -> None:
    """A WordPiece of the special pieces and one letter, in the place of the model."""
    model = {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##"}
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, "a"])}
    content.update(pre_tokenizer=None, model=model | {"max_input_chars_per_word": longest, "vocab": vocab})


def _tokenizer(change: Callable[[dict], Any]) -> Change:
    """Change `tokenizer.json`, which is alone there."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        changed = change(content)
        text = json.dumps(content if changed is None else changed)
        (folder / "tokenizer.json").write_text(text)

    return _by_json(edit)


def _edited(folder: Path) -> None:
    """A `tokenizer.json` in which two pieces have changed places."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab[20], vocab[21] = vocab[21], vocab[20]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def _weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Change:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def _header(change: Callable[[dict], Any]) -> Change:
    """Change the header of the weights and leave their numbers."""

    def edit(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])

    return edit


def _nested(depth: int, text: str = '{"a":', end: str = "}") -> str:
    return text * depth + "1" + end * depth


def _wordpiece(pieces: list[str], **options: Any) -> Change:
    """A `vocab.txt` in the place of the tokenizer."""

    def change(folder: Path) -> None:
        for name in ("tokenizer.model", "tokenizer.json", "special_tokens_map.json"):
            (folder / name).unlink()
        (folder / "vocab.txt").write_text("\n".join(pieces))
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True} | options))

    return change


def _damaged(file: str, seed: int) -> Case:
    """Bytes of a file cut, flipped, repeated or overwritten: whatever comes of it, it is said or harmless."""

    def change(folder: Path) -> None:
        if file == "tokenizer.json":
            (folder / "tokenizer.model").unlink()
        damage(folder / file, seed, within=4000)  # the beginning of weights is their header, which alone has a meaning

    return _case(f"bytes of {file}, {seed}", change, status=EITHER, new=("out", "out/*"))


def _far_id(content: dict) -> None:
    content["added_tokens"].append(
        {"id": 4_000_000_000, "content": "far", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": False}
    )  # fmt: skip


def _far_piece(content: dict) -> None:
    content["model"] = {
        "type": "WordLevel", "unk_token": "[UNK]",
        "vocab": {piece: i for i, piece in enumerate(SPECIAL)} | {"far": 2**32 - 5},
    }  # fmt: skip


def _backtracking(content: dict) -> None:
    """A pattern that takes ever longer with each letter, and in the end more than its library allows."""
    content["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": r"(\p{L}+)+(?<!\p{L})$"}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def _word(tensors: dict) -> str:
    return next(name for name in tensors if name.endswith("word_embeddings.weight"))


def _nan(part: str, value: float = np.nan) -> Callable[[dict], None]:
    def change(tensors: dict) -> None:
        name = next(name for name in tensors if part in name)
        tensors[name].flat[3] = value

    return change


def _pooler(dtype: Any, value: float = 0.5) -> Callable[[dict], None]:
    def change(tensors: dict) -> None:
        size = tensors[_word(tensors)].shape[1]
        tensors["bert.pooler.dense.weight"] = np.full((size, size), value, dtype)
        tensors["bert.pooler.dense.bias"] = np.full(size, value, dtype)

    return change


def _decoder(tensors: dict) -> None:
    tensors["cls.predictions.decoder.weight"] = tensors[_word(tensors)].astype(ml_dtypes.float8_e4m3fn)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CASES = [
    # config.json
    _case("config.json: gone", lambda folder: (folder / "config.json").unlink(), "config.json"),
    _case("config.json: empty", write("config.json", ""), "config.json"),
    _case("config.json: a list", write("config.json", "[1]"), "config.json", "object"),
    _case("config.json: a number", write("config.json", "7"), "config.json", "object"),
    _case("config.json: null", write("config.json", "null"), "config.json", "object"),
    _case("config.json: no JSON", write("config.json", "{'a': 1}"), "config.json"),
    _case("config.json: no UTF-8", write("config.json", b'{"a": "\xff\xfe"}'), "config.json"),
    _case("config.json: UTF-16", write("config.json", '{"a": 1}'.encode("utf-16")), "config.json"),
    _case("config.json: NUL bytes", write("config.json", b"\0" * 100), "config.json"),
    _case("config.json: nested 10,000 deep", write("config.json", _nested(10_000)), "config.json"),
    _case("config.json: lists 100,000 deep", write("config.json", _nested(100_000, "[", "]")), "config.json"),
    _case("config.json: a number of 5,000 digits", write("config.json", '{"a": ' + "9" * 5000 + "}"), "config.json"),
    _case(
        "config.json: a folder", lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "config.json"
    ),
    _case("config.json: a pipe", special("config.json"), "config.json is a pipe"),
    _case("tokenizer_config.json: a pipe", special("tokenizer_config.json"), "tokenizer_config.json is a pipe"),
    _case("tokenizer_config.json: /dev/zero", special("tokenizer_config.json", "/dev/zero"), "is a device"),
    _config("hidden_size 10^12", "hidden_size", hidden_size=10**12),
    _config("hidden_size 2^31", "hidden_size", hidden_size=2**31),
    _config("hidden_size of 400 digits", "hidden_size", hidden_size=10**400),
    _config("hidden_size negative", "hidden_size", hidden_size=-32),
    _config("hidden_size 0", "hidden_size", hidden_size=0),
    _config("hidden_size a text", "hidden_size", "'32'", hidden_size="32"),
    _config("hidden_size a fraction", "hidden_size", "32.5", hidden_size=32.5),
    _config("hidden_size true", "hidden_size", hidden_size=True),
    _config("hidden_size a list", "hidden_size", hidden_size=[32]),
    _config("hidden_size gone", "hidden_size is missing", hidden_size=None),
    _config("hidden_size of another network", "config.json", hidden_size=64),
    _config("hidden_size not divided by heads", "num_attention_heads", hidden_size=32, num_attention_heads=5),
    _config("num_attention_heads 0", "num_attention_heads", num_attention_heads=0),
    _config("num_attention_heads 10^9", "num_attention_heads", num_attention_heads=10**9),
    _config("a million layers", "num_hidden_layers", num_hidden_layers=1_000_000),
    _config("10^15 layers", "num_hidden_layers", num_hidden_layers=10**15),
    _config("two layers where one is", "layer.1", num_hidden_layers=2),
    _config("no layers", "num_hidden_layers", num_hidden_layers=0),
    _config("-1 layers", "num_hidden_layers", num_hidden_layers=-1),
    _config("vocab_size 1", "config.json", vocab_size=1),
    _config("vocab_size 10^12", "vocab_size", vocab_size=10**12),
    _config("vocab_size negative", "vocab_size", vocab_size=-5),
    _config("intermediate_size 0", "intermediate_size", intermediate_size=0),
    _config("intermediate_size 10^15", "intermediate_size", intermediate_size=10**15),
    _config("max_position_embeddings 0", "max_position_embeddings", max_position_embeddings=0),
    _config("max_position_embeddings 10^15", "max_position_embeddings", max_position_embeddings=10**15),
    _config("type_vocab_size 0", "type_vocab_size", type_vocab_size=0),
    _config("type_vocab_size 10^12", "type_vocab_size", type_vocab_size=10**12),
    _config("type_vocab_size a text", "type_vocab_size", type_vocab_size="two"),
    _config("layer_norm_eps infinite", "layer_norm_eps", layer_norm_eps=float("inf")),
    _config("layer_norm_eps NaN", "layer_norm_eps", layer_norm_eps=float("nan")),
    _config("layer_norm_eps negative", "layer_norm_eps", layer_norm_eps=-1e-12),
    _config("layer_norm_eps 1e300", "layer_norm_eps", layer_norm_eps=1e300),
    _config("layer_norm_eps a text", "layer_norm_eps", layer_norm_eps="small"),
    _config("initializer_range infinite", "initializer_range", initializer_range=float("inf")),
    _config("initializer_range 1e30", "initializer_range", initializer_range=1e30),
    _config("initializer_range an object", "initializer_range", initializer_range={"a": 1}),
    _config("hidden_dropout_prob 1", "hidden_dropout_prob", hidden_dropout_prob=1.0),
    _config("hidden_dropout_prob -0.5", "hidden_dropout_prob", hidden_dropout_prob=-0.5),
    _config("hidden_act unknown", "hidden_act", hidden_act="swish"),
    _config("hidden_act a list", "hidden_act", hidden_act=["gelu"]),
    _config("model_type unknown", "model_type", model_type="gpt2"),
    _config("model_type a list", "model_type", model_type=["bert"]),
    _config("model_type an object", "model_type", model_type={"bert": 1}),
    _config("model_type with a terminal's escapes", "model_type", model_type="\x1b[31mbert\n"),
    _config("model_type of 100,000 letters", "model_type", model_type="x" * 100_000),
    _config("model_type of another family", "RoBERTa", model_type="roberta", pad_token_id=0),
    _config("ModernBERT's type", "ModernBERT", model_type="modernbert"),
    _config("architectures a number", architectures=5, status=0),
    _config("architectures an object", architectures={"a": 1}, status=0),
    _config("architectures an empty list", architectures=[], status=0),
    _config("pad_token_id 10^20", "pad_token_id", pad_token_id=10**20, status=0),
    _config("pad_token_id of RoBERTa 10^20", "pad_token_id", model_type="roberta", pad_token_id=10**20),
    _config("pad_token_id of RoBERTa -7", "pad_token_id", model_type="roberta", pad_token_id=-7),
    _config("a decoder", "is_decoder", is_decoder=True),
    _config("code of its own", auto_map={"AutoModel": "modeling.Model"}, status=0),
    _config("a field of 100 kB", "position_embedding_type", position_embedding_type="y" * 100_000),
    # Weights
    _case("weights: gone", lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    _case("weights: empty", write(WEIGHTS, b""), WEIGHTS),
    _case("weights: 7 bytes", write(WEIGHTS, b"\0" * 7), WEIGHTS),
    _case("weights: a header of 2^63 bytes", write(WEIGHTS, b"\xff" * 8 + b"{}"), WEIGHTS),
    _case("weights: a pickle", write(WEIGHTS, b"\x80\x04\x95" + b"\0" * 50), WEIGHTS),
    _case("weights: a web page", write(WEIGHTS, "<html>404</html>" * 10), WEIGHTS),
    _case("weights: Git LFS's pointer", write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    _case("weights: an empty header", write(WEIGHTS, (2).to_bytes(8, "little") + b"{}"), WEIGHTS, "missing"),
    _case("weights: a header nested 10,000 deep", _header(lambda h: json.loads(_nested(900))), WEIGHTS),
    _case("weights: a list as header", _header(lambda h: [1]), WEIGHTS),
    _case(
        "weights: numbers beyond the file",
        _header(lambda h: h["cls.predictions.bias"].update(data_offsets=[0, 2**60], shape=[2**58])),
        WEIGHTS,
    ),
    _case("weights: a shape of another size", _header(lambda h: h["cls.predictions.bias"].update(shape=[7])), WEIGHTS),
    _case("weights: a negative shape", _header(lambda h: h["cls.predictions.bias"].update(shape=[-1])), WEIGHTS),
    _case("weights: an unknown type", _header(lambda h: h["cls.predictions.bias"].update(dtype="F7")), WEIGHTS),
    _case("weights: a tensor gone", _weights(lambda t: t.pop("cls.predictions.bias")), "cls.predictions.bias"),
    _case("weights: no tensor", _weights(lambda t: t.clear()), WEIGHTS, "missing"),
    _case("weights: a tensor too many", _weights(lambda t: t.update(other=np.ones(2))), "other"),
    _case(
        "weights: whole numbers",
        _weights(lambda t: t.update({"cls.predictions.bias": t["cls.predictions.bias"].astype(np.int64)})),
        "cls.predictions.bias",
    ),
    _case(
        "weights: float8",
        _weights(lambda t: t.update({"cls.predictions.bias": t["cls.predictions.bias"].astype(ml_dtypes.float8_e5m2)})),
        "cls.predictions.bias",
        "F8",
    ),
    _case("weights: float8 in the pooler", _weights(_pooler(ml_dtypes.float8_e4m3fn)), "bert.pooler", "F8"),
    _case("weights: float8 in the decoder", _weights(_decoder), "cls.predictions.decoder.weight", "F8"),
    _case("weights: whole numbers in the pooler", _weights(_pooler(np.int32, 1)), "bert.pooler", "I32"),
    _case("weights: NaN", _weights(_nan("word_embeddings")), "not finite", "word_embeddings"),
    _case("weights: infinity in a norm", _weights(_nan("LayerNorm.weight", np.inf)), "not finite", "LayerNorm"),
    _case("weights: NaN in the pooler", _weights(_pooler(np.float32, np.nan)), "not finite", "bert.pooler"),
    _case("weights: NaN in a bfloat16 pooler", _weights(_pooler(ml_dtypes.bfloat16, np.nan)), "not finite"),
    _case("weights: half a pooler", _weights(lambda t: t.update({"bert.pooler.dense.bias": np.ones(32)})), "pooler"),
    _case(
        "weights: a pooler of another size",
        _weights(
            lambda t: t.update({"bert.pooler.dense.bias": np.ones(7), "bert.pooler.dense.weight": np.ones((7, 7))})
        ),
        "pooler",
        "expected",
    ),
    _case(
        "weights: numbers beyond float32",
        _weights(lambda t: t.update({"cls.predictions.bias": t["cls.predictions.bias"].astype(np.float64) + 1e300})),
        "not finite",
    ),
    _case(
        "weights: two encoders",
        _weights(lambda t: t.update({f"other.{name}": value for name, value in list(t.items())})),
        "encoders",
    ),
    _case(
        "weights: a name with a terminal's escapes",
        _weights(lambda t: t.update({"bert.\x1b[31mred\n": np.ones(2)})),
        "unknown",
    ),
    _case(
        "weights: 3,000 tensors too many",
        _weights(lambda t: t.update({f"other.{i}": np.ones(1) for i in range(3000)})),
        "more",
    ),
    _case(
        "weights: shard 1 of 10^9", lambda f: (f / WEIGHTS).rename(f / "model-00001-of-1000000000.safetensors"), "shard"
    ),
    _case("weights: shard 1 of 2", lambda f: (f / WEIGHTS).rename(f / "model-00001-of-00002.safetensors"), "missing"),
    _case("weights: a loop of links", lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(WEIGHTS)), WEIGHTS),
    # Tokenizers
    _case(
        "tokenizer: gone",
        lambda f: [(f / name).unlink() for name in ("tokenizer.model", "tokenizer.json")],
        "tokenizer",
    ),
    _case("tokenizer.model: empty", write("tokenizer.model", b""), "tokenizer.model"),
    _case(
        "tokenizer.model: random bytes", write("tokenizer.model", random.Random(3).randbytes(500)), "tokenizer.model"
    ),
    _case("tokenizer.model: a text", write("tokenizer.model", "hello"), "tokenizer.model"),
    _case("tokenizer.json: empty", _by_json(write("tokenizer.json", "")), "tokenizer.json"),
    _case("tokenizer.json: a list", _by_json(write("tokenizer.json", "[]")), "tokenizer.json"),
    _case("tokenizer.json: nested deep", _by_json(write("tokenizer.json", _nested(10_000))), "tokenizer.json"),
    _case("tokenizer.json: no UTF-8", _by_json(write("tokenizer.json", b'{"a": "\xff"}')), "tokenizer.json"),
    _case("tokenizer.json: an empty vocabulary", _tokenizer(lambda c: c["model"].update(vocab=[])), "tokenizer.json"),
    _case(
        "tokenizer.json: an empty vocabulary of words",
        _tokenizer(
            lambda c: c.update(
                model={"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}, added_tokens=[], post_processor=None
            )
        ),
        "tokenizer.json",
    ),
    _case("tokenizer.json: no model", _tokenizer(lambda c: c.update(model=None)), "tokenizer.json"),
    _case("tokenizer.json: an unknown model", _tokenizer(lambda c: c["model"].update(type="Magic")), "tokenizer.json"),
    _case("tokenizer.json: an added token with the id 4e9", _tokenizer(_far_id), "tokenizer.json", "far"),
    _case("tokenizer.json: a piece with the id 4e9", _tokenizer(_far_piece), "tokenizer.json", "4,294,967,291"),
    _case("tokenizer.json: added_tokens a number", _tokenizer(lambda c: c.update(added_tokens=5)), "tokenizer.json"),
    _case("tokenizer.json: added_tokens null", _tokenizer(lambda c: c.update(added_tokens=None)), "tokenizer.json"),
    _case(
        "tokenizer.json: unk_id beyond the vocabulary",
        _tokenizer(lambda c: c["model"].update(unk_id=10**6)),
        "tokenizer.json",
    ),
    _case("tokenizer.json: no unk_id", _tokenizer(lambda c: c["model"].update(unk_id=None)), "tokenizer.json", "unk"),
    _case(
        "tokenizer.json: [UNK] is not in the vocabulary",
        _tokenizer(
            lambda c: c.update(
                model={"type": "WordLevel", "unk_token": "[NO]", "vocab": {p: i for i, p in enumerate([*SPECIAL, "a"])}}
            )
        ),
        "tokenizer.json",
        "unk_token",
    ),
    _case(
        "tokenizer.json: WordPiece without its [UNK]",
        _tokenizer(functools.partial(_word_piece, unk="[NO]", longest=100)),
        "tokenizer.json",
        "unk_token",
    ),
    _case(
        "tokenizer.json: max_input_chars_per_word 0",
        _tokenizer(functools.partial(_word_piece, unk="[UNK]", longest=0)),
        "tokenizer.json",
    ),
    _case("tokenizer.json: a regex that backtracks for ever", _tokenizer(_backtracking), "tokenizer.json"),
    _case(
        "tokenizer.json: a regex that is none",
        _tokenizer(
            lambda c: c.update(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
            )
        ),
        "tokenizer.json",
    ),
    _case(
        "tokenizer.json: a normaliser that leaves nothing",
        _tokenizer(lambda c: c.update(normalizer={"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""})),
        "tokenizer.json",
    ),
    _case(
        "tokenizer.json: an unknown normaliser",
        _tokenizer(lambda c: c.update(normalizer={"type": "Magic"})),
        "tokenizer.json",
    ),
    _case(
        "tokenizer.json: a template of pieces that are not there",
        _tokenizer(lambda c: c["post_processor"].update(special_tokens={})),
        "tokenizer.json",
    ),
    _case(
        "tokenizer.json: no special piece",
        _tokenizer(
            lambda c: c.update(
                model={"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}},
                added_tokens=[],
                post_processor=None,
            )
        ),
        "tokenizer.json",
        "[PAD]",
    ),
    _case("vocab.txt: empty", _wordpiece([]), "vocab.txt"),
    _case("vocab.txt: one letter", _wordpiece(["a"]), "vocab.txt"),
    _case("vocab.txt: special pieces alone", _wordpiece(SPECIAL), "vocab.txt"),
    _case("vocab.txt: more pieces than rows", _wordpiece([*SPECIAL, *map(str, range(5000))]), "vocab.txt", "5005"),
    _case("vocab.txt: 1,000 blank lines", _wordpiece([""] * 1000), "vocab.txt"),
    _case(
        "options: nested 10,000 deep",
        _by_json(write("tokenizer_config.json", _nested(10_000))),
        "tokenizer_config.json",
    ),
    _case("options: a list", _by_json(write("tokenizer_config.json", "[1]")), "tokenizer_config.json"),
    _case(
        "options: a number of 5,000 digits",
        _by_json(write("tokenizer_config.json", '{"a":' + "9" * 5000 + "}")),
        "tokenizer_config.json",
    ),
    _options("tokenizer_class a number", "tokenizer_class", tokenizer_class=5),
    _options("tokenizer_class a list", "tokenizer_class", tokenizer_class=["BertTokenizer"]),
    _options("tokenizer_class an object", "tokenizer_class", tokenizer_class={"a": 1}),
    _options("tokenizer_class of another kind", "tokenizer_class", tokenizer_class="T5Tokenizer"),
    _options("code of its own", "auto_map", auto_map={"AutoTokenizer": ["a.B", None]}),
    _options("split_special_tokens", "split_special_tokens", split_special_tokens=True),
    _options("added tokens a number", "added", additional_special_tokens=5),
    _options("added tokens of numbers", "added", additional_special_tokens=[1, 2]),
    _options("added tokens by no id", "added", added_tokens_decoder={"x": {"content": "y"}}),
    _options("added tokens by an id of 4e9", "far", added_tokens_decoder={"4000000000": {"content": "far"}}),
    _options("an added token without text", "added", additional_special_tokens=[""]),
    _options(
        "an added token of a flag that is a text",
        "added",
        additional_special_tokens=[{"content": "x", "lstrip": "yes"}],
    ),
    _options("mask_token another", "mask_token", mask_token="[OTHER]"),
    _options("mask_token a number", "mask_token", mask_token=7),
    *(
        _damaged(file, seed)
        for file in ("config.json", WEIGHTS, "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
        for seed in range(12)
    ),
    _case("weights of zeros", _weights(lambda tensors: [tensor.fill(0) for tensor in tensors.values()]), "zeros"),
    _case(
        "config.json: a field twice",
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace("{", '{"num_attention_heads": 8,', 1)
        ),
        "stands twice",
    ),
    _case("another tokenizer.json", _edited, "beside it has other pieces", status=0, new=("out", "out/*")),
    Case("a workdir that is a link to nowhere", COMMAND.replace("$here/model", "$base/exported"),
         lambda here, base: (here / "out").symlink_to(here / "nowhere"), words=("out", "exists")),
    *(
        Case(f"a recipe of another kind: {recipe}", f"{COMMAND.replace('$here/model', '$base/exported')}.more".replace(
            "tests/small.py.more", recipe), words=(recipe.partition(":")[0], "no recipe of a pretraining"))
        for recipe in ("configs/finetune.py", "configs/sweep.py", "configs/predict.py", "configs/arena/small.py:x")
    ),
    Case("convert: nothing", "sctd_jax.interop.convert", words=("FILE_OR_FOLDER",)),
    Case("convert: two files", "sctd_jax.interop.convert $base/text.txt $base/text.txt", words=("text.txt",)),
    Case("convert: a bucket", "sctd_jax.interop.convert gs://a/b", words=("gs://a/b",)),
    Case("convert: no such file", "sctd_jax.interop.convert $here/none", words=("none",)),
    Case("convert: a text", "sctd_jax.interop.convert $base/text.txt",
         words=("text.txt is no file of weights",)),
    Case("convert: a pickle of no weights", "sctd_jax.interop.convert $here/a.bin", words=("a.bin",),
         make=lambda here, base: write("a.bin", "cos\nsystem\n(S'true'\ntR.")(here)),
    Case("convert: help", "sctd_jax.interop.convert --help", status=0, words=("FILE_OR_FOLDER",)),
]  # fmt: skip
