"""A BERT checkpoint in `transformers`' format, checked and read; numbers are read when they are asked for."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from sctd_jax.config import Config, ModelConfig, from_dict
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, printable
from sctd_jax.hf import config_json
from sctd_jax.hf import names as weights
from sctd_jax.hf.convert import find_weights

_CONFIG_FILE = "config.json"
# Parts of names that torch's wrappers leave (DataParallel, compile, FSDP), and the name by which a BERT is found.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_LANDMARK = "embeddings.word_embeddings.weight"
# Tensors of BERT checkpoints that are not in this network: tasks' heads, and an index that is always 0, 1, 2 ...
_LEFT_OUT = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids", "classifier.", "qa_outputs.")
_DECODER_BIAS = "cls.predictions.decoder.bias"
# Saved a second time by some versions, and what they are tied to.
_TIED = {"cls.predictions.decoder.weight": weights.WORD_EMBEDDINGS, _DECODER_BIAS: weights.OUTPUT_BIAS}
_POINTER = b"version https://git-lfs"
_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 12


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of `transformers`, looked at."""

    network: Mapping[str, Any]  # the fields of `config.model` that it decides
    config: Config  # defaults around them
    tokenizer: tokenizer.Tokenizer
    tokenizer_file: Path
    tensors: int  # those that pretraining takes
    has_head: bool  # whether it can predict masked tokens
    digest: str  # SHA-256 of the weights
    left_out: tuple[str, ...]  # tensors that pretraining has not; a pooler is among them
    notes: tuple[str, ...]  # remarks on how it was read
    params: Callable[[], dict[str, Any]]  # f32 arrays: `encoder`, and `mlm_head` and `pooler` where they are


def read_folder(source: Path, tokenizer_file: Path | None = None) -> Folder:
    """Look at a `BertForMaskedLM` or `BertModel` checkpoint; every number is checked, and none is kept.

    The source is a folder with `model.safetensors`, `config.json` and a tokenizer (unless `tokenizer_file` is given),
    or the safetensors file in it.
    """
    checkpoint = find_weights(source)
    folder = checkpoint.parent
    file = tokenizer_file or Path(tokenizer.find_published(epath.Path(folder), "name one with --tokenizer"))
    loaded = tokenizer.load(file)
    described = _read_json(folder / _CONFIG_FILE)
    fields = config_json.from_json(described, str(folder / _CONFIG_FILE))
    rows, count = fields["vocab_size"], len(loaded.pieces)
    if count > rows:
        raise UserError(f"the tokenizer {file} has {count} pieces, but the checkpoint's {_CONFIG_FILE} says {rows}")
    fields["vocab_size"] = count
    config = around(fields, dataclasses.asdict(Config()))
    taken, left_out, fronts = check_tensors(checkpoint, config.model, rows)
    notes = tokenizer.remarks(file)
    pad, said = loaded.special.pad, described.get("pad_token_id")
    if said not in (None, pad):
        notes.append(f"warning: {_CONFIG_FILE} says pad_token_id {said}, but {loaded.pieces[pad]} is {pad}, which is "
                     f"used; transformers never trained the embedding of {said}")  # fmt: skip
    if fronts:
        notes.append(f"read without what a wrapper put into the tensors' names: {listed(fronts)}")
    if rows > count:
        notes.append(
            f"warning: the checkpoint has {rows:,} embedding rows and the tokenizer {count:,} pieces; "
            "the rows above, which no piece uses, are left out"
        )

    def params() -> dict[str, Any]:
        with _opened(checkpoint) as tensors:
            by_vocabulary = (weights.WORD_EMBEDDINGS, weights.OUTPUT_BIAS)
            return weights.from_bert(config.model, (
                (name, tensors.get_tensor(theirs)[: count if name in by_vocabulary else None])
                for name, theirs in taken.items()
            ))  # fmt: skip

    with checkpoint.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Folder(
        network=fields,
        config=config,
        tokenizer=loaded,
        tokenizer_file=file,
        tensors=len(taken.keys() - weights.POOLER.keys()),
        has_head=any(name.startswith(weights.HEAD) for name in taken),
        digest=digest,
        left_out=tuple(left_out),
        notes=tuple(notes),
        params=params,
    )


def around(network: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """A config with this network; what later runs do with it is their configs' matter, so that it drops nothing."""
    sections = {name: dict(values) for name, values in sections.items()}
    sections["model"] |= network
    sections["dropping"]["method"] = "full"
    sections["data"]["seq_len"] = min(sections["data"]["seq_len"], network["max_positions"])
    return from_dict(sections)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it says what the network looks like") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: expected an object with fields, found a {type(found).__name__}")
    return found


def check_tensors(path: Path, model: ModelConfig, rows: int) -> tuple[dict[str, str], list[str], list[str]]:
    """Check that a safetensors file holds this network, and no number in it that is not finite.

    The network has the vocabulary of the tokenizer, the file's word embedding `rows`.

    Returns:
      The file's names of tensors to take by `BertForMaskedLM`'s present ones, a pooler's among them, the names that
      pretraining leaves out, and what was cut from names.
    """
    with _opened(path) as file:
        names, fronts = _present_names(path, file.keys())
        left_out = [theirs for name, theirs in names.items() if name.startswith(_LEFT_OUT)]
        taken = {name: theirs for name, theirs in names.items() if not name.startswith(_LEFT_OUT)}
        decoders = {name: taken.pop(name) for name in _TIED if name in taken}
        if weights.OUTPUT_BIAS not in taken and _DECODER_BIAS in decoders:
            taken[weights.OUTPUT_BIAS] = decoders.pop(_DECODER_BIAS)
        _check_fit(path, file, taken, model, rows)
        # All of them, for a file with one such number is damaged, and fine-tuning takes the pooler too.
        broken = [theirs for theirs in names.values() if not _is_finite(file, theirs)]
        if broken:
            raise UserError(f"{path}: numbers that are not finite in {listed(broken)}; take another copy of it")
        for name, theirs in decoders.items():
            if not np.array_equal(file.get_tensor(theirs), file.get_tensor(taken[_TIED[name]])):
                raise UserError(
                    f"{path}: {printable(theirs)} differs from {_TIED[name]}, but this network ties the two"
                )
        return taken | _check_pooler(path, file, names, model.hidden_size), left_out, fronts


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError), path.open("rb") as start:
            if start.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"{path} is Git LFS's pointer to the weights, not the weights: git lfs pull fetches them"
                ) from error
        raise UserError(f"{path} is not a safetensors file that can be read: {printable(error)}") from error


def _is_finite(file, name: str) -> bool:
    if file.get_slice(name).get_dtype() not in _FLOATS:
        return True
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
        return bool(np.isfinite(np.asarray(file.get_tensor(name), np.float32)).all())


def _check_pooler(path: Path, file, names: Mapping[str, str], width: int) -> dict[str, str]:
    """The file's names of a pooler's tensors, or none."""
    there = {name: names[name] for name in weights.POOLER if name in names}
    if there and len(there) < len(weights.POOLER):
        raise UserError(f"{path} has half a pooler: {printable(*there.values())} alone")
    shapes = [tuple(file.get_slice(theirs).get_shape()) for theirs in there.values()]
    if shapes not in ([], [(width, width), (width,)]):
        raise UserError(f"{path}: the pooler is {shapes[0]} and {shapes[1]}, expected {width, width} and {(width,)}")
    return there


def _present_names(path: Path, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The file's names by `BertForMaskedLM`'s present ones, and what was cut from them.

    BertModel saves without "bert.", old checkpoints call LayerNorm's leaves otherwise, and a network that was part of
    another one has the names of its parents in front.
    """
    found, cut = {}, set()
    plain = {theirs: ".".join(part for part in theirs.split(".") if part not in _WRAPPERS) for theirs in names}
    fronts = {name.removesuffix(_LANDMARK) for name in plain.values() if f".{name}".endswith(f".{_LANDMARK}")}
    if len(fronts) > 1:
        raise UserError(
            f"{path} holds {len(fronts)} encoders ({listed(sorted(fronts))}), and one is expected: save it alone"
        )
    inner = "".join(fronts)
    outer = inner.removesuffix("bert.") if f".{inner}".endswith(".bert.") else inner
    for theirs, name in plain.items():
        cut |= set(theirs.split(".")) & set(_WRAPPERS)
        name = name.removeprefix(inner if name.startswith(inner) else outer)
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.replace(old, new)
        name = f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
        if name in found:
            raise UserError(
                f"{path} holds {printable(name)} twice, as {printable(found[name])} and as {printable(theirs)}"
            )
        found[name] = theirs
    return found, sorted(f"{part}." for part in cut) + ([outer] if outer else [])


def _check_fit(path: Path, file, found: Mapping[str, str], model: ModelConfig, rows: int) -> None:
    shapes = weights.shapes(model)
    expected = {
        name: weights.shape_in_bert(model, ours, shapes[ours].shape) for name, ours in weights.names(model).items()
    }
    for name in (weights.WORD_EMBEDDINGS, weights.OUTPUT_BIAS):
        expected[name] = (rows, *expected[name][1:])
    has_head = any(name.startswith(weights.HEAD) for name in found)
    missing = [name for name in expected if name not in found and (has_head or not name.startswith(weights.HEAD))]
    unknown = [theirs for name, theirs in found.items() if name not in expected]
    misfits = []
    for name in expected.keys() & found.keys():
        part = file.get_slice(found[name])
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != expected[name] or kind not in _FLOATS:
            misfits.append(f"{found[name]} is {kind} {shape}, expected a float {expected[name]}")
    problems = [
        f"{title}: {listed(sorted(items))}"
        for title, items in (("missing", missing), ("unknown", unknown), ("of another shape", misfits))
        if items
    ]
    if problems:
        raise UserError(f"{path} does not fit the BERT of its config.json; {'; '.join(problems)}")


def listed(items: Sequence[str]) -> str:
    """The first names of a list, printable, and how many more there are."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(map(printable, items[:_LISTED])) + more
