"""A checkpoint in `transformers`' format, checked and read; numbers are read when they are asked for."""

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

from sctd_jax import storage
from sctd_jax.config import Config, ModelConfig, from_dict
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, printable
from sctd_jax.fields import unique_fields
from sctd_jax.hf import config_json
from sctd_jax.hf import names as weights
from sctd_jax.hf.convert import find_weights, shards

_CONFIG_FILE = "config.json"
# Parts of names that torch's wrappers leave (DataParallel, compile, FSDP).
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
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
    """Look at a checkpoint of a kind in `names.LAYOUTS`; every number is checked, and none is kept.

    It may lack the MLM head. The source is a folder with `model.safetensors` or its shards, `config.json` and a
    tokenizer (unless `tokenizer_file` is given), or the safetensors file in it.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / _CONFIG_FILE).is_file():
        find_weights(source)  # weights of another format, whose own description has another name, are named as such
    # Before weights and tokenizer: another kind of model has others of both.
    described = _read_json(folder / _CONFIG_FILE)
    fields = config_json.from_json(described, str(folder / _CONFIG_FILE))
    checkpoint = find_weights(source)
    file = tokenizer_file or Path(tokenizer.find_published(epath.Path(folder), "name one with --tokenizer"))
    loaded = tokenizer.load(file)
    rows, count = fields["vocab_size"], len(loaded.pieces)
    if count > rows:
        raise UserError(f"the tokenizer {file} has {count} pieces, but the checkpoint's {_CONFIG_FILE} says {rows}")
    fields["vocab_size"] = count
    config = around(fields, dataclasses.asdict(Config()))
    first, layout = config_json.first_row(described), weights.LAYOUTS[config.model.family]
    taken, left_out, fronts = check_tensors(checkpoint, config.model, rows, first)
    pooler = layout.pooler(taken)
    notes = tokenizer.remarks(file)
    if not tokenizer_file and file.name == tokenizer.JSON_FILE and (folder / tokenizer.SENTENCEPIECE_FILE).is_file():
        notes.append(f"{file} is read: {tokenizer.SENTENCEPIECE_FILE} beside it has other pieces")
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
            by_vocabulary = (layout.word, layout.output_bias)
            named = (
                (name, tensors[theirs].get_tensor(theirs)[: count if name in by_vocabulary else None])
                for name, theirs in taken.items()
            )
            return weights.from_torch(config.model, weights.names(config.model) | pooler, named, first)

    digest = hashlib.sha256()
    for file_of_weights in shards(checkpoint):
        with file_of_weights.open("rb") as content:
            while part := content.read(1 << 24):
                digest.update(part)
    return Folder(
        network=fields,
        config=config,
        tokenizer=loaded,
        tokenizer_file=file,
        tensors=len(taken.keys() - pooler.keys()),
        has_head=layout.output_bias in taken,
        digest=digest.hexdigest(),
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
        found = json.loads(storage.regular_file(path).read_text(encoding="utf-8"), object_pairs_hook=unique_fields)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it says what the network looks like") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: expected an object with fields, found a {type(found).__name__}")
    return found


def check_tensors(
    path: Path, model: ModelConfig, rows: int, first: int = 0
) -> tuple[dict[str, str], list[str], list[str]]:
    """Check that a safetensors file and its shards hold this network, and no number that is not finite.

    The network has the vocabulary of the tokenizer, the file's word embedding `rows`; `first` is the row of its
    position table that the first token reads.

    Returns:
      The file's names of tensors to take by the present ones of `names.names`, a pooler's among them, the names that
      pretraining leaves out, and what was cut from names.
    """
    layout = weights.LAYOUTS[model.family]
    with _opened(path) as tensors:
        names, fronts = _present_names(path, tensors, layout)
        pooler = layout.pooler(names)
        left = [name for name in names if name in pooler or name.startswith(layout.left_out)]
        taken = {name: theirs for name, theirs in names.items() if name not in left}
        second = {name: taken.pop(name) for name in layout.tied if name in taken}
        for name in [name for name in second if layout.tied[name] not in taken]:
            taken[layout.tied[name]] = second.pop(name)
        beside = [*second.values(), *(theirs for name, theirs in names.items() if name in pooler)]
        if other := [f"{n} is {kind}" for n in beside if (kind := tensors[n].get_slice(n).get_dtype()) not in _FLOATS]:
            raise UserError(f"{path}: {listed(other)}, expected {', '.join(_FLOATS)}")
        _check_fit(path, tensors, taken, model, rows, first)
        # All of them, for a file with one such number is damaged, and fine-tuning takes the pooler too.
        found = {theirs: _numbers(tensors[theirs], theirs) for theirs in names.values()}
        if broken := [theirs for theirs, (finite, _) in found.items() if not finite]:
            raise UserError(f"{path}: numbers that are not finite in {listed(broken)}; take another copy of it")
        if empty := [theirs for theirs in taken.values() if found[theirs][1]]:
            raise UserError(f"{path}: nothing but zeros in {listed(empty)}; take another copy of it")
        for name, theirs in second.items():
            tied = taken[layout.tied[name]]
            if not np.array_equal(tensors[theirs].get_tensor(theirs), tensors[tied].get_tensor(tied)):
                raise UserError(
                    f"{path}: {printable(theirs)} differs from {layout.tied[name]}, but this network ties the two"
                )
        return taken | _check_pooler(path, tensors, names, model, pooler), [names[name] for name in left], fronts


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[dict[str, Any]]:
    """The opened file of each tensor by its name."""
    tensors: dict[str, Any] = {}
    shard = path
    try:
        with contextlib.ExitStack() as stack:
            for shard in shards(path):
                file = stack.enter_context(safe_open(shard, framework="np"))
                for name in file.keys():  # noqa: SIM118
                    if name in tensors:
                        raise UserError(f"{shard} holds {printable(name)}, which another shard holds too")
                    tensors[name] = file
            yield tensors
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError), shard.open("rb") as start:
            if start.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"{shard} is Git LFS's pointer to the weights, not the weights: git lfs pull fetches them"
                ) from error
        raise UserError(f"{shard} is not a safetensors file that can be read: {printable(error)}") from error


def _numbers(file, name: str) -> tuple[bool, bool]:
    """Whether all are finite, and whether a matrix has nothing but zeros, as a RoBERTa's one or two segments may."""
    if file.get_slice(name).get_dtype() not in _FLOATS:
        return True, False
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
        numbers = np.asarray(file.get_tensor(name), np.float32)
    return bool(np.isfinite(numbers).all()), numbers.ndim > 1 and min(numbers.shape) > 2 and not numbers.any()


def _check_pooler(
    path: Path, tensors: Mapping[str, Any], names: Mapping[str, str], model: ModelConfig, pooler: weights.Table
) -> dict[str, str]:
    """The file's names of a pooler's tensors, or none."""
    there = {name: names[name] for name in pooler if name in names}
    if there and len(there) < len(pooler):
        raise UserError(f"{path} has half a pooler: {printable(*there.values())} alone")
    found, ours = [tuple(tensors[name].get_slice(name).get_shape()) for name in there.values()], weights.shapes(model)
    expected = [weights.shape_in_torch(model, pooler[name], ours) for name in there]
    if found != expected:
        raise UserError(f"{path}: the pooler is {found[0]} and {found[1]}, expected {expected[0]} and {expected[1]}")
    return there


def _present_names(path: Path, names: Iterable[str], layout: weights.Layout) -> tuple[dict[str, str], list[str]]:
    """The file's names by the present ones of `names.names`, and what was cut from them.

    A class without a head, as BertModel, saves without "bert.", old checkpoints call LayerNorm's leaves otherwise, and
    a network that was part of another one has the names of its parents in front.
    """
    found, cut = {}, set()
    plain = {theirs: ".".join(part for part in theirs.split(".") if part not in _WRAPPERS) for theirs in names}
    landmark = layout.word.removeprefix(layout.inner)
    fronts = {name.removesuffix(landmark) for name in plain.values() if f".{name}".endswith(f".{landmark}")}
    if len(fronts) > 1:
        raise UserError(
            f"{path} holds {len(fronts)} encoders ({listed(sorted(fronts))}), and one is expected: save it alone"
        )
    inner = "".join(fronts)
    outer = inner.removesuffix(layout.inner) if f".{inner}".endswith(f".{layout.inner}") else inner
    for theirs, name in plain.items():
        cut |= set(theirs.split(".")) & set(_WRAPPERS)
        name = name.removeprefix(inner if name.startswith(inner) else outer)
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.replace(old, new)
        name = f"{layout.inner}{name}" if name.startswith(layout.parts) else name
        if name in found:
            raise UserError(
                f"{path} holds {printable(name)} twice, as {printable(found[name])} and as {printable(theirs)}"
            )
        found[name] = theirs
    return found, sorted(f"{part}." for part in cut) + ([outer] if outer else [])


def _check_fit(
    path: Path, tensors: Mapping[str, Any], found: Mapping[str, str], model: ModelConfig, rows: int, first: int
) -> None:
    layout = weights.LAYOUTS[model.family]
    if model.num_layers > len(tensors):  # nothing is made by a number that the file cannot hold
        raise UserError(
            f"{path} does not fit the {layout.title} of its config.json; num_hidden_layers is {model.num_layers:,}, "
            f"but it has {len(tensors):,} tensors in all: most are missing"
        )
    shapes = weights.shapes(model)
    expected = {name: weights.shape_in_torch(model, ours, shapes, first) for name, ours in weights.names(model).items()}
    for name in (layout.word, layout.output_bias):
        expected[name] = (rows, *expected[name][1:])
    has_head = any(name.startswith(layout.head) for name in found)
    missing = [name for name in expected if name not in found and (has_head or not name.startswith(layout.head))]
    unknown = [theirs for name, theirs in found.items() if name not in expected]
    misfits = []
    for name in expected.keys() & found.keys():
        part = tensors[found[name]].get_slice(found[name])
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != expected[name] or kind not in _FLOATS:
            misfits.append(f"{found[name]} is {kind} {shape}, expected a float {expected[name]}")
    problems = [
        f"{title}: {listed(sorted(items))}"
        for title, items in (("missing", missing), ("unknown", unknown), ("of another shape", misfits))
        if items
    ]
    if problems:
        raise UserError(f"{path} does not fit the {layout.title} of its config.json; {'; '.join(problems)}")


def listed(items: Sequence[str]) -> str:
    """The first names of a list, printable, and how many more there are."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(map(printable, items[:_LISTED])) + more
