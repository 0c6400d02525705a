"""A BERT checkpoint in `transformers`' format -> a workdir that later runs start from."""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from sctd_jax.config import Config, from_dict
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, printable
from sctd_jax.hf import config_json as bert_config
from sctd_jax.hf import names as weights
from sctd_jax.interop.convert import find_weights
from sctd_jax.pretrain.model import initial_state
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.state import TrainState
from sctd_jax.train.workdir import write_config

_CONFIG_FILE = "config.json"
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.txt")
# Parts of names that torch's wrappers leave (DataParallel, compile, FSDP), and the name by which a BERT is found.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_LANDMARK = "embeddings.word_embeddings.weight"
# In BERT checkpoints, but not in this network: tasks' heads, and an index that is always 0, 1, 2 ...
_LEFT_OUT = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids", "classifier.", "qa_outputs.")
_POOLER = {"kernel": "bert.pooler.dense.weight", "bias": "bert.pooler.dense.bias"}
_DECODER_BIAS = "cls.predictions.decoder.bias"
# Saved a second time by some versions, and what they are tied to.
_TIED = {"cls.predictions.decoder.weight": weights.WORD_EMBEDDINGS, _DECODER_BIAS: weights.OUTPUT_BIAS}
_POINTER = b"version https://git-lfs"
_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 12


def import_model(
    source: Path, workdir: Path, *, tokenizer_file: Path | None, recipe: Mapping, log: Callable[[str], None]
) -> None:
    """Make `workdir` a run at step 0 with the parameters of a `BertForMaskedLM` or `BertModel` checkpoint.

    Args:
      source: a folder with `model.safetensors`, `config.json` and a tokenizer, or the safetensors file in it.
      workdir: a folder that does not exist yet; it appears only when complete.
      tokenizer_file: instead of the one beside the weights.
      recipe: sections of a config; its model section is replaced.
      log: receives what was left out or initialised, and the next command.

    Raises:
      UserError: something is missing or does not fit; nothing is written then.
    """
    if workdir.exists():
        raise UserError(f"{workdir} exists already; choose another --workdir")
    found = read_model(source, tokenizer_file=tokenizer_file, recipe=recipe)
    _write(workdir, found.config, found.state, found.tokenizer_file)
    model = found.config.model
    log(f"imported {found.tensors} tensors of {source} to {workdir}: {model.num_layers} layers x "
        f"{model.hidden_size}, vocabulary {model.vocab_size:,}")  # fmt: skip
    for note in found.notes:
        log(note)
    if found.left_out:
        log(f"left out, which this network has not: {_listed(found.left_out)}")
    if not found.has_head:
        log("there is no MLM head in it: the head starts from random weights, which pretraining trains")
    log(f"pretrain on: python -m sctd_jax.main --config=configs/continued.py:{workdir} "
        "--config.data.input='folder/**/*.txt' --workdir=runs/continued")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint of `transformers` as ours."""

    config: Config
    state: TrainState  # at step 0
    tokenizer_file: Path
    tensors: int  # how many were read
    has_head: bool  # of MLM; otherwise it starts from random weights
    digest: str  # of the file
    pooler: Mapping[str, np.ndarray] | None  # `kernel` [D, D] and `bias` [D], for fine-tuning
    left_out: tuple[str, ...]  # tensors that pretraining has not; a pooler is among them
    notes: tuple[str, ...]  # how it was read


def read_model(source: Path, *, tokenizer_file: Path | None, recipe: Mapping) -> Imported:
    """Read a checkpoint; arguments and errors as `import_model`."""
    checkpoint = find_weights(source)
    folder = checkpoint.parent
    pieces_file = tokenizer_file or _find_tokenizer(folder)
    pieces = tokenizer.load(pieces_file)
    described = _read_json(folder / _CONFIG_FILE)
    model = bert_config.from_json(described, str(folder / _CONFIG_FILE))
    rows = model["vocab_size"]
    model["vocab_size"] = _vocab_size(rows, len(pieces.pieces), pieces_file)
    config = _config(model, recipe)
    state = jax.jit(lambda: initial_state(config, pieces.special))()
    tensors, pooler, left_out, fronts = _read_tensors(checkpoint, config, rows, state.params)
    state = state.replace(params=jax.device_put(weights.from_bert(config.model, tensors, state.params)))
    notes = tokenizer.remarks(pieces_file)
    pad, said = pieces.special.pad, described.get("pad_token_id")
    if said not in (None, pad):
        notes.append(f"warning: {_CONFIG_FILE} says pad_token_id {said}, but {pieces.pieces[pad]} is {pad}, which is "
                     f"used; transformers never trained the embedding of {said}")  # fmt: skip
    if fronts:
        notes.append(f"read without what a wrapper put into the tensors' names: {_listed(fronts)}")
    if rows > model["vocab_size"]:
        notes.append(
            f"warning: the checkpoint has {rows:,} embedding rows and the tokenizer {model['vocab_size']:,} pieces; "
            "the rows above, which no piece uses, are left out"
        )
    has_head = any(weights.is_head(name) for name in tensors)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Imported(config, state, pieces_file, len(tensors), has_head, digest, pooler, tuple(left_out), tuple(notes))


def _find_tokenizer(folder: Path) -> Path:
    found = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}); name one with --tokenizer")
    # Of two, `transformers` reads the JSON, to which tokens may have been added since.
    if [file.name for file in found[:2]] == list(_TOKENIZER_FILES[:2]):
        pieces = tokenizer.load(found[0], kept=True).pieces
        if [piece.strip() for piece in tokenizer.load(found[1]).pieces] != [piece.strip() for piece in pieces]:
            return found[1]
    return found[0]


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


def _vocab_size(rows: int, pieces: int, path: Path) -> int:
    if pieces > rows:
        raise UserError(f"the tokenizer {path} has {pieces} pieces, but the checkpoint's config.json says {rows}")
    return pieces


def _config(model: Mapping[str, Any], recipe: Mapping) -> Config:
    sections = {name: dict(values) for name, values in recipe.items()}
    sections["model"] |= model
    # Nothing has been trained here: what later runs do is their configs' matter.
    sections["dropping"]["method"] = "full"
    sections["data"]["seq_len"] = min(sections["data"]["seq_len"], model["max_positions"])
    return from_dict(sections)


def _read_tensors(
    path: Path, config: Config, rows: int, initial: Mapping
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None, list[str], list[str]]:
    """Tensors by their present names, the pooler, the names that were left out, and what was cut from names."""
    try:
        with safe_open(path, framework="np") as file:
            names, fronts = _present_names(path, file.keys())
            left_out = [theirs for name, theirs in names.items() if name.startswith(_LEFT_OUT)]
            found = {name: theirs for name, theirs in names.items() if not name.startswith(_LEFT_OUT)}
            decoders = {name: found.pop(name) for name in _TIED if name in found}
            if weights.OUTPUT_BIAS not in found and _DECODER_BIAS in decoders:
                found[weights.OUTPUT_BIAS] = decoders.pop(_DECODER_BIAS)
            _check_fit(path, file, found, config, rows, initial)
            # All of them, for a file with one such number is damaged, and fine-tuning takes the pooler too.
            broken = [theirs for theirs in names.values() if not _is_finite(file, theirs)]
            if broken:
                raise UserError(f"{path}: numbers that are not finite in {_listed(broken)}; take another copy of it")
            tensors = {name: file.get_tensor(theirs) for name, theirs in found.items()}
            for name, theirs in decoders.items():
                if not np.array_equal(file.get_tensor(theirs), tensors.get(_TIED[name])):
                    raise UserError(
                        f"{path}: {printable(theirs)} differs from {_TIED[name]}, but this network ties the two"
                    )
            pooler = _read_pooler(path, file, names, config.model.hidden_size)
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError), path.open("rb") as start:
            if start.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"{path} is Git LFS's pointer to the weights, not the weights: git lfs pull fetches them"
                ) from error
        raise UserError(f"{path} is not a safetensors file that can be read: {printable(error)}") from error
    for name in {weights.WORD_EMBEDDINGS, weights.OUTPUT_BIAS} & set(tensors):
        tensors[name] = tensors[name][: config.model.vocab_size]
    return tensors, pooler, left_out, fronts


def _is_finite(file, name: str) -> bool:
    if file.get_slice(name).get_dtype() not in _FLOATS:
        return True
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
        return bool(np.isfinite(np.asarray(file.get_tensor(name), np.float32)).all())


def _read_pooler(path: Path, file, names: Mapping[str, str], width: int) -> dict[str, np.ndarray] | None:
    there = [name for name in _POOLER.values() if name in names]
    if not there:
        return None
    if len(there) < len(_POOLER):
        raise UserError(f"{path} has half a pooler: {printable(names[there[0]])} alone")
    kernel, bias = (np.asarray(file.get_tensor(names[_POOLER[leaf]]), np.float32) for leaf in ("kernel", "bias"))
    if (kernel.shape, bias.shape) != ((width, width), (width,)):
        raise UserError(
            f"{path}: the pooler is {kernel.shape} and {bias.shape}, expected {width, width} and {(width,)}"
        )
    return {"kernel": kernel.T, "bias": bias}


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
            f"{path} holds {len(fronts)} encoders ({_listed(sorted(fronts))}), and one is expected: save it alone"
        )
    inner = "".join(fronts)
    outer = inner.removesuffix("bert.") if f".{inner}".endswith(".bert.") else inner
    for theirs, name in plain.items():
        cut |= set(theirs.split(".")) & set(_WRAPPERS)
        if front := next((front for front in (inner, outer) if front and name.startswith(front)), ""):
            name = name.removeprefix(front)
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.replace(old, new)
        name = f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
        if name in found:
            raise UserError(
                f"{path} holds {printable(name)} twice, as {printable(found[name])} and as {printable(theirs)}"
            )
        found[name] = theirs
    return found, sorted(f"{part}." for part in cut) + ([outer] if outer else [])


def _check_fit(path: Path, file, found: Mapping[str, str], config: Config, rows: int, initial: Mapping) -> None:
    shapes = {tuple(key.key for key in at): leaf.shape for at, leaf in jax.tree_util.tree_leaves_with_path(initial)}
    expected = {
        name: weights.shape_in_bert(config.model, ours, shapes[ours])
        for name, ours in weights.names(config.model).items()
    }
    for name in (weights.WORD_EMBEDDINGS, weights.OUTPUT_BIAS):
        expected[name] = (rows, *expected[name][1:])
    has_head = any(weights.is_head(name) for name in found)
    missing = [name for name in expected if name not in found and (has_head or not weights.is_head(name))]
    unknown = [theirs for name, theirs in found.items() if name not in expected]
    misfits = []
    for name in expected.keys() & found.keys():
        part = file.get_slice(found[name])
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != expected[name] or kind not in _FLOATS:
            misfits.append(f"{found[name]} is {kind} {shape}, expected a float {expected[name]}")
    problems = [
        f"{title}: {_listed(sorted(items))}"
        for title, items in (("missing", missing), ("unknown", unknown), ("of another shape", misfits))
        if items
    ]
    if problems:
        raise UserError(f"{path} does not fit the BERT of its config.json; {'; '.join(problems)}")


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(map(printable, items[:_LISTED])) + more


def _write(workdir: Path, config: Config, state: TrainState, pieces_file: Path) -> None:
    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{workdir.name}.incomplete-", dir=workdir.parent) as temporary:
            ready = Path(temporary, "workdir")
            ready.mkdir()
            name, content = tokenizer.canonical(pieces_file)
            (ready / name).write_bytes(content)
            checkpoints = Checkpoints(ready)
            try:
                checkpoints.save(state, None)
                checkpoints.wait()
            finally:
                checkpoints.close()
            write_config(ready, config)
            ready.rename(workdir)
    except OSError as error:
        raise UserError(f"cannot write {workdir}: {error}") from error
