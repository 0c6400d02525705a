"""Weights in other formats -> `model.safetensors`; where those of a folder are, and how its model is downloaded.

Every tensor is kept, under the name that `transformers`' torch classes give it; no class has to be chosen, which could
lose a head or invent one. An import reads safetensors alone: they name every tensor and run no code.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from sctd_jax.errors import UserError, printable, writing

WEIGHTS_FILE = "model.safetensors"
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # patterns of what is read of a model
_PARTS = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")  # parts of one TensorFlow checkpoint
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_MOST_SHARDS = 1_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Names of Flax, Keras and TensorFlow -> torch's, in this order.
_NAMES = (
    (r"/", "."),
    (r":0$", ""),
    (r"^[^.]+\.tf_bert[^.]*\.", ""),  # Keras's layer and model
    (r"^(mlm|nsp)___cls\.", "cls."),
    (r"\blayer_(\._)?(\d+)\b", r"layer.\2"),
    (r"_embeddings(\.embeddings?)?$", "_embeddings.weight"),
    (r"\.(kernel|scale|gamma|output_weights)$", ".weight"),
    (r"\.(beta|output_bias)$", ".bias"),
)
# Models that are known by a name without their owner's.
_OWNERS = {
    r"bert-(base|large)-": "google-bert/",
    r"(xlm-)?roberta-(base|large)$": "FacebookAI/",
    r"camembert-base$": "almanach/",
    r"ModernBERT-(base|large)$": "answerdotai/",
}
_HUB_NAME = re.compile(
    r"(?:hf:/*|https?:/+)?(?:huggingface\.co/)?((?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*?)(?:/|/(?:tree|blob)/.*)?"
)


def torch_names(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Tensors of Flax, Keras or TensorFlow by their names in torch, where kernels are (out, in)."""
    found = {}
    for theirs, array in arrays:
        name = theirs
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        array = array.T if re.search(r"[./]kernel(:0)?$", theirs) else array
        if name in found and not np.array_equal(found[name], array):
            raise UserError(f"two tensors are called {printable(name)}, the second as {printable(theirs)}")
        found[name] = array
    return found


def _read_pickles(files: list[Path]) -> Mapping[str, np.ndarray]:
    import torch

    found: dict[str, Any] = {}
    for file in files:
        loaded = torch.load(file, map_location="cpu", weights_only=True)  # builds tensors and runs nothing else
        found |= loaded.get("state_dict", loaded)  # Lightning's
    tensors = {name: tensor for name, tensor in found.items() if torch.is_tensor(tensor)}
    if len(tensors) < len(found):
        print(f"left out {len(found) - len(tensors)} entries that are no tensors")
    # NumPy has no bfloat16.
    return {n: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy() for n, t in tensors.items()}


def _read_flax(files: list[Path]) -> Mapping[str, np.ndarray]:
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    return torch_names(flatten_dict(msgpack_restore(files[0].read_bytes()), sep="/").items())


def _read_keras(files: list[Path]) -> Mapping[str, np.ndarray]:
    import h5py

    found = []
    with h5py.File(files[0]) as file:
        file.visititems(lambda name, item: found.append((name, item[()])) if hasattr(item, "dtype") else None)
    return torch_names(found)


def _read_tensorflow(files: list[Path]) -> Mapping[str, np.ndarray]:
    import tensorflow

    reader = tensorflow.train.load_checkpoint(str(files[0].with_name(_PARTS.sub("", files[0].name))))
    # The rest is the optimizer's.
    names = [n for n in reader.get_variable_to_shape_map() if not re.search(r"(^|/)(adam_[mv]|global_step)$", n)]
    return torch_names((name, reader.get_tensor(name)) for name in names)


class _Format(NamedTuple):
    pattern: str  # names of its files
    what: str
    needs: str
    read: Callable[[list[Path]], Mapping[str, np.ndarray]]


_PICKLE = _Format(
    r"^pytorch_model.*\.bin$|\.ckpt$", "is a pickle, which can run any code and is never loaded", "torch", _read_pickles
)
_FORMATS = (
    _PICKLE,
    _Format(r"\.msgpack$", "is Flax's", "flax", _read_flax),
    _Format(_PARTS.pattern, "is TensorFlow's", "tensorflow", _read_tensorflow),
    _Format(r"\.h5$", "is Keras's", "h5py", _read_keras),
)


def find_weights(source: Path) -> Path:
    """The safetensors file or first shard of a folder, or the file itself; an error has the command that makes one."""
    found, files = _look(source)
    if not found:
        return files[0]
    raise UserError(
        f"{printable(files[0])} {found.what}; convert it, where {found.needs} and safetensors are installed: "
        f"python -m sctd_jax.interop.convert {printable(shlex.quote(str(source)))}"
    )


def is_shard(name: str) -> bool:
    """Whether a folder's file of this name holds a part of its model's weights."""
    found = _SHARD.fullmatch(name)
    return bool(found) and found[1] == WEIGHTS_FILE.removesuffix(".safetensors")


def shards(path: Path) -> list[Path]:
    """The files that hold a model's weights together, where `path` may be any of them.

    They are found by their names: the index beside them could name any path.
    """
    if not (found := _SHARD.fullmatch(path.name)):
        return [path]
    stem, _, count = found.groups()
    if not 1 <= int(count) <= _MOST_SHARDS:
        raise UserError(f"{printable(path)}: a shard of 1 to {_MOST_SHARDS} is expected")
    files = [path.with_name(f"{stem}-{i:0{len(count)}}-of-{count}.safetensors") for i in range(1, int(count) + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{printable(path)} is one of {len(files)} shards, of which {printable(missing[0])} is missing")
    return files


def _look(source: Path) -> tuple[_Format | None, list[Path]]:
    """The format of what a user names, None if it is ours, and its files."""
    folder, names = source.parent, [source.name]
    if source.is_dir():
        folder, names = source, sorted(path.name for path in source.iterdir() if path.is_file())
        if first := [name for name in names if name == WEIGHTS_FILE] or [name for name in names if is_shard(name)]:
            return None, [source / first[0]]
    elif not source.is_file():
        names = [f"{source.name}.index"]  # TensorFlow's users name what its files have in common
        if not (folder / names[0]).is_file():
            raise UserError(f"{printable(source)}: no such file or folder{download_hint(str(source))}")
    elif source.suffix in _PICKLES:  # most of them are other things where a folder is named
        return _PICKLE, [source]
    for form in _FORMATS:
        if any(re.search(form.pattern, name) for name in names):
            return form, [folder / name for name in names if re.search(form.pattern, name)]
    if source.is_file():
        return None, [source]
    others = [name for name in names if name.endswith(".safetensors")]
    instead = f"; name {printable(source / others[0])} if it is what you mean" if others else ""
    raise UserError(f"{printable(source)}: no {WEIGHTS_FILE} there{instead}")


def convert(source: Path) -> Path:
    """Write `model.safetensors` beside the weights that `source`, a file or folder, has in another format.

    Of TensorFlow's `bert_config.json` a `config.json` is made where there is none.
    """
    found, files = _look(source)
    to = files[0].with_name(WEIGHTS_FILE)
    if not found and files[0].suffix != ".safetensors":
        raise UserError(
            f"{printable(source)} is no file of weights that is converted; expected is pytorch_model.bin or another "
            f"{', '.join(_PICKLES)}, flax_model.msgpack, tf_model.h5 or TensorFlow's NAME.index"
        )
    if not found or to.exists():
        raise UserError(f"{printable(to if to.exists() else files[0])} is there already: nothing to convert")
    try:
        tensors = found.read(files)
    except ImportError as error:
        raise UserError(f"{printable(files[0])} {found.what}; pip install {found.needs} here: {error}") from error
    except UserError as error:
        raise UserError(f"{printable(files[0])}: {error}") from error
    except Exception as error:  # each library has its own
        reason = printable((str(error) or repr(error)).splitlines()[0])
        raise UserError(f"{printable(files[0])} cannot be read with {found.needs}: {reason}") from error
    partial = to.with_name(f"{WEIGHTS_FILE}.incomplete")
    try:
        with writing(to):
            save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, partial, metadata={"format": "pt"})
            partial.chmod(files[0].stat().st_mode & 0o666)  # permissions of what it was made of
            partial.rename(to)
            old, config = to.with_name("bert_config.json"), to.with_name("config.json")
            if old.is_file() and not config.exists():
                config.write_text(
                    json.dumps({"model_type": "bert", **json.loads(old.read_text(encoding="utf-8"))}, indent=2)
                )
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"cannot write {printable(to)}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {len(tensors)} tensors of {len(files)} file(s) to {printable(to)}")
    return to


def canonical(repository: str) -> str:
    """A repository of the hub with its owner, where it is known by a name without."""
    owners = (owner for names, owner in _OWNERS.items() if re.match(names, repository))
    return next(owners, "") + repository if "/" not in repository else repository


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, in whatever format."""
    return name.endswith((".safetensors", ".onnx", ".gguf", *_PICKLES)) or any(
        re.search(form.pattern, name) for form in _FORMATS
    )


def download_command(repository: str) -> str:
    """The command that downloads what is read of a repository of the hub, into a folder called as its model is."""
    patterns = " ".join(f'--include "{pattern}"' for pattern in FILES)
    return f"hf download {repository} {patterns} --local-dir {repository.rpartition('/')[2]}"


def download_hint(name: str) -> str:
    """Advice on a name that is no folder: how a model of the Hugging Face hub is named; '' if it can be none there."""
    if not (found := _HUB_NAME.fullmatch(name)):
        return ""
    repository = canonical(found[1])
    return (
        f"; a model of the Hugging Face hub is named hf:{repository} (pip install huggingface_hub), or is downloaded "
        f"first: {download_command(repository)}, and then {repository.rpartition('/')[2]} is the name"
    )
