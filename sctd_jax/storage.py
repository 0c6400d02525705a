"""Paths on a disk or in a Google Cloud Storage bucket: etils.epath for single files, fsspec for whole folders."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
from etils import epath

from sctd_jax.errors import UserError

_REMOTE = "gs://"  # what Orbax, TensorStore, epath and fsspec all reach


def as_path(path: str | os.PathLike) -> epath.Path:
    """A path like pathlib's, on a disk or in a bucket.

    Raises:
      UserError: it begins with a scheme other than gs://.
    """
    text = os.fspath(path)
    if is_remote(text):
        # Without this gcsfs asks for the bucket's layout before each request, and complains where it may not know.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        # A process must see what another one has written since it last looked.
        fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
        return epath.Path(text)
    if "://" in text:
        raise UserError(f"{text}: a folder on a disk or in a gs:// bucket is expected")
    return epath.Path(text)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it is in a bucket, where nothing can be appended to or opened by other libraries."""
    return os.fspath(path).startswith(_REMOTE)


def tensorstore_spec(folder: epath.Path) -> dict:
    """TensorStore's kvstore of the files below a folder."""
    if not is_remote(folder):
        return {"driver": "file", "path": f"{folder}/"}
    bucket, _, path = os.fspath(folder).removeprefix(_REMOTE).partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """What the cloud's libraries raise (credentials, no such bucket, no network) as one line.

    Raises:
      UserError: instead of any other exception, for a path in a bucket.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"{os.fspath(path)} cannot be reached: {reason}") from error


def upload(folder: Path, out: epath.Path, last: str = "") -> None:
    """Copy a folder into a bucket; the file named `last`, which says that it is complete, after the others."""
    files, root = fsspec.core.url_to_fs(os.fspath(out))
    with reaching(out):
        for path in sorted(folder.rglob("*"), key=lambda path: path.name == last):
            if path.is_file():
                files.put_file(str(path), f"{root}/{path.relative_to(folder)}")


def local_copy(folder: epath.Path, identity: str, log: Callable[[str], None]) -> Path:
    """A folder in a bucket, copied to this host's disk unless a copy with this identity is there.

    The copies are in `$XDG_CACHE_HOME/sctd_jax` (by default `~/.cache/sctd_jax`).

    Raises:
      UserError: the bucket cannot be reached or the disk is full.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sctd_jax")
    copy = cache / hashlib.sha256(f"{os.fspath(folder)}\n{identity}".encode()).hexdigest()[:16]
    if copy.is_dir():
        return copy
    log(f"copying {folder} to {copy}")
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{copy.name}.incomplete-", dir=cache))
    try:
        files, root = fsspec.core.url_to_fs(os.fspath(folder))
        with reaching(folder):
            files.get(root, str(work / "copy"), recursive=True)
        (work / "copy").rename(copy)
    except OSError as error:
        if not copy.is_dir():  # another process of this host was faster
            raise UserError(f"{folder} cannot be copied to {copy}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return copy
