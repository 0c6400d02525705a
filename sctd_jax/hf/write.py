"""A model as a folder that `transformers`' `AutoTokenizer` and `AutoModel` classes load."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer

from sctd_jax.config import ModelConfig
from sctd_jax.data import tokenizer
from sctd_jax.data.special import SpecialIds
from sctd_jax.hf import config_json, names, tokenizer_json
from sctd_jax.hf.convert import WEIGHTS_FILE

_CONFIG, _TOKENS, _TOKENIZER_CONFIG = "config.json", "special_tokens_map.json", "tokenizer_config.json"
FILES = {WEIGHTS_FILE, _CONFIG, _TOKENS, _TOKENIZER_CONFIG, tokenizer.SENTENCEPIECE_FILE, tokenizer.JSON_FILE}


def write_folder(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer_file: epath.Path,
    *,
    table: names.Table,
    settings: Mapping[str, Any],
) -> None:
    """Write weights, `config.json` and a run's tokenizer into a folder that exists.

    The table is one of `names`, the settings are the fields of `config.json` that differ from those of the class for
    masked language modelling.
    """
    special = write_tokenizer(folder, tokenizer_file, segments=config.type_vocab_size, positions=config.max_positions)
    first = names.first_position(config.family, special.pad)
    write_weights(folder / WEIGHTS_FILE, config, params, table, first)
    _write_json(folder / _CONFIG, config_json.to_json(config, special) | dict(settings))


def write_tokenizer(folder: Path, tokenizer_file: epath.Path, *, segments: int, positions: int) -> SpecialIds:
    """Write a run's tokenizer as `AutoTokenizer` reads it, with the pairs of fine-tuning.

    A model of one segment has an embedding for no other and asks for none; sequences have at most `positions` tokens.
    """
    loaded = tokenizer.load(tokenizer_file, kept=True)
    special = loaded.special
    tokens = {f"{role}_token": loaded.pieces[i] for role, i in special._asdict().items()}
    name, content = tokenizer.canonical(tokenizer_file, kept=True)
    if name == tokenizer.SENTENCEPIECE_FILE:
        tokenizer.check_exportable(content, tokenizer_file)
        (folder / name).write_bytes(content)
        fast = tokenizer_json.convert(content, special)
    else:
        fast = Tokenizer.from_buffer(content)
    fast = tokenizer_json.framed(fast, special, segments, tokenizer.separators(loaded, segments))
    added = fast.get_added_tokens_decoder().values()
    more = [str(token) for token in added if token.special and str(token) not in tokens.values()]
    (folder / tokenizer.JSON_FILE).write_text(fast.to_str(), encoding="utf-8")
    # Without the class transformers 5 builds that of the model type, and gets every sentence of another one wrong.
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "model_input_names": ["input_ids", *["token_type_ids"] * (segments > 1), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokens,
        **({"additional_special_tokens": more} if more else {}),
    }
    _write_json(folder / _TOKENS, tokens)
    _write_json(folder / _TOKENIZER_CONFIG, options)
    return special


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, config: ModelConfig, params: Mapping[str, Any], table: names.Table, first: int) -> None:
    """Write parameters as safetensors, one by one: `safetensors.numpy` wants all of them at once, in torch's layout.

    `first` is the row of the position table that the first token reads. Numbers are float32 in one file, as those of
    the encoders on the hub: `from_pretrained(dtype=...)` casts them, and `transformers` begins to split at 50 GB.

    The format is that of github.com/huggingface/safetensors: the header's length u64, the header, the numbers.
    """
    leaves = flatten_dict(params)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, paths in table.items():
        shape = names.shape_in_torch(config, paths, leaves, first)
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for paths in table.values():
            file.write(names.to_torch(config, paths, leaves, first).astype("<f4", copy=False).data)
