"""A model as a folder that `transformers`' `AutoTokenizer` and `AutoModel` classes load."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer

from sctd_jax.config import ModelConfig
from sctd_jax.data import tokenizer
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.hf import config_json, names, tokenizer_json
from sctd_jax.hf.convert import WEIGHTS_FILE, is_shard

_CONFIG, _TOKENS, _TOKENIZER_CONFIG = "config.json", "special_tokens_map.json", "tokenizer_config.json"
_INDEX = f"{WEIGHTS_FILE}.index.json"
_FILES = {WEIGHTS_FILE, _INDEX, _CONFIG, _TOKENS, _TOKENIZER_CONFIG, tokenizer.SENTENCEPIECE_FILE, tokenizer.JSON_FILE}
# Name of the type -> its code in safetensors and NumPy's type, little-endian.
_FLOATS = {
    "float32": ("F32", np.dtype("<f4")),
    "bfloat16": ("BF16", np.dtype(jnp.bfloat16)),
    "float16": ("F16", np.dtype("<f2")),
}
DTYPES = tuple(_FLOATS)


@dataclasses.dataclass(frozen=True)
class Precision:
    """Type and files of the numbers; the default is what `transformers` writes of encoders: float32 in one file."""

    dtype: str = "float32"
    shard_bytes: float = math.inf  # the most of one file, which a larger tensor alone exceeds


EXACT = Precision()


def is_ours(name: str) -> bool:
    """Whether a file of this name can be one of `write_folder`'s."""
    return name in _FILES or is_shard(name)


def write_folder(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer_file: epath.Path,
    *,
    table: names.Table,
    settings: Mapping[str, Any],
    precision: Precision = EXACT,
) -> None:
    """Write weights, `config.json` and a run's tokenizer into a folder that exists.

    The table is one of `names`, the settings are the fields of `config.json` that differ from those of the class for
    masked language modelling.
    """
    special = write_tokenizer(folder, tokenizer_file, segments=config.type_vocab_size, positions=config.max_positions)
    first = names.first_position(config.family, special.pad)
    write_weights(folder, config, params, table, first, precision)
    _write_json(
        folder / _CONFIG, config_json.to_json(config, special) | {"torch_dtype": precision.dtype} | dict(settings)
    )


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


def write_weights(
    folder: Path, config: ModelConfig, params: Mapping[str, Any], table: names.Table, first: int, precision: Precision
) -> None:
    """Write parameters as safetensors, one by one: `safetensors.numpy` wants all of them at once, in torch's layout.

    `first` is the row of the position table that the first token reads. Each tensor is rounded to the nearest number of
    `precision`, and stands whole in a file; beside more files than one is the index with the file of each tensor.

    The format is that of github.com/huggingface/safetensors: the header's length u64, the header, the numbers.

    A finite number that has no finite one in `precision` is refused.
    """
    leaves, (code, numpy) = flatten_dict(params), _FLOATS[precision.dtype]
    shapes = {name: names.shape_in_torch(config, paths, leaves, first) for name, paths in table.items()}
    sizes = {name: numpy.itemsize * math.prod(shape) for name, shape in shapes.items()}
    files: list[list[str]] = [[]]
    for name, size in sizes.items():
        if files[-1] and sum(sizes[one] for one in files[-1]) + size > precision.shard_bytes:
            files.append([])
        files[-1].append(name)
    index = {}
    for i, inside in enumerate(files, 1):
        file_name = f"model-{i:05}-of-{len(files):05}.safetensors" if files[1:] else WEIGHTS_FILE
        index |= dict.fromkeys(inside, file_name)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in inside:
            begin, end = end, end + sizes[name]
            header[name] = {"dtype": code, "shape": shapes[name], "data_offsets": (begin, end)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file_name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in inside:
                exact = names.to_torch(config, table[name], leaves, first)
                with np.errstate(over="ignore"):
                    tensor = exact.astype(numpy, copy=False)
                if lost := int((np.isfinite(exact) & ~np.isfinite(tensor)).sum()):
                    raise UserError(
                        f"{name}: {lost} of {exact.size} numbers, up to {np.abs(exact).max():.3g}, are beyond "
                        f"{precision.dtype}; --dtype bfloat16 has the range of float32"
                    )
                file.write(tensor.view(np.uint8).data)
    if files[1:]:
        _write_json(folder / _INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index})
