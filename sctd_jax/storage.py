"""Paths on a disk or in a Google Cloud Storage bucket: etils.epath for single files, fsspec for whole folders."""

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from etils import epath

from sctd_jax.errors import TryAgainError, UserError, of_disk, printable
from sctd_jax.fields import unique_fields

_OF_THIS_HOST = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
ORIGIN_FILE = "origin.json"  # file of a partial copy: the folder, and the bytes of each file that is there alone
REQUESTS = 32  # number of requests at a time to a bucket
_REMOTE = "gs://"  # the scheme that Orbax, TensorStore, epath and fsspec all reach
_MARKED_BYTES = 1024  # first bytes of a file, among which the mark of its writer is looked for
_LARGEST_JSON = 1 << 30  # bytes; the plan of a preparation may list many copies
_KINDS = {
    stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}  # fmt: skip
_Path = TypeVar("_Path", bound=str | os.PathLike)


def as_path(path: str | os.PathLike, any_name: bool = False) -> epath.Path:
    """A path like pathlib's, on a disk or in a bucket; ~ is expanded, which a shell leaves alone behind a =.

    Args:
      path: file or folder as a person gives it.
      any_name: also one that is no UTF-8, which Python opens, and the libraries of rows and checkpoints do not.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("a path is empty: a file or folder is expected")
    if is_remote(text):
        # gcsfs otherwise asks for the bucket's layout before each request, and complains where it may not know.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks of what it also raises
        # A process must see what another one has written since it last looked.
        fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
        return epath.Path(text)
    if "://" in text:
        raise UserError(f"{text}: a folder on a disk or in a gs:// bucket is expected")
    text = os.path.expanduser(text)
    try:
        absolute = os.path.abspath(text)
        if not any_name:
            absolute.encode()
    except UnicodeEncodeError:
        cure = "rename it"
        if (encoding := sys.getfilesystemencoding()) != "utf-8":  # the locale's: the name may well be UTF-8
            cure = f"Python reads names as {encoding} here, so set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or rename it"
        raise UserError(f"{absolute} is no UTF-8, which the libraries that write there expect: {cure}") from None
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
    """Turn what the cloud's libraries raise (credentials, no such bucket, no network) into a TryAgainError of one line.

    Only for a path behind a protocol; and a full disk of this host is no such failure.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "://" not in os.fspath(path) or getattr(error, "errno", None) in _OF_THIS_HOST:
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise TryAgainError(f"{os.fspath(path)} cannot be reached: {reason}") from error


def exists(path: epath.Path) -> bool:
    """Whether a file or folder is there; a bucket that cannot be reached is no answer but a TryAgainError."""
    with reaching(path):
        return path.exists()


def regular_file(path: _Path, advice: str = "", largest: float = math.inf) -> _Path:
    """The path of what is to be read, refused before it is opened where it is a folder, a pipe or a device.

    A pipe may be silent for ever, and a device has no end. What is missing is for the opener to say, and so is what is
    wrong in a bucket.

    Args:
      path: the file, or a link to it.
      advice: end of the message.
      largest: bytes that it may have.
    """
    try:
        found = os.stat(path)
    except OSError:
        return path
    if kind := _KINDS.get(stat.S_IFMT(found.st_mode)):
        raise UserError(f"{path} is a {kind}, a file is expected{advice}")
    if found.st_size > largest:
        raise UserError(f"{path} has {found.st_size:,} bytes, {largest:,} at most are expected{advice}")
    return path


def check_own(path: str | os.PathLike, what: str, *marks: bytes) -> None:
    """Refuse to write over what has none of these marks in its first bytes, as `what` has; an empty file may go."""
    place = as_path(path)
    if not exists(place):
        return
    try:
        with reaching(place), regular_file(place).open("rb") as file:
            head: Any = file.read(_MARKED_BYTES)
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from error
    if head and not any(mark in head for mark in marks):
        raise UserError(f"{place} is there, and is no {what}: give another name")


def read_json(path: epath.Path, advice: str = "") -> dict[str, Any]:
    """The fields of a small file; `advice` ends the message."""
    advice = advice and f"; {advice}"
    try:
        with reaching(path):
            content = regular_file(path, advice, _LARGEST_JSON).read_bytes().decode()
            found = json.loads(content, object_pairs_hook=unique_fields)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {printable(error)}{advice}") from error
    if not isinstance(found, dict):
        said = printable(repr(found))
        raise UserError(f"{path} is damaged: an object with fields is expected, found {said:.40}{advice}")
    return found


def check_writable(folder: epath.Path) -> None:
    """Check that files can be written into a bucket, which nothing else says before the first one.

    TryAgainError if it does not answer.
    """
    probe = folder / f".claim-{uuid.uuid4().hex}"
    try:
        with reaching(folder):
            probe.write_bytes(b"")
            probe.unlink()
    except TryAgainError as error:
        if not (isinstance(error.__cause__, FileNotFoundError) or "Forbidden" in str(error)):
            raise
        raise UserError(f"{error}; does the bucket exist, and may you write there?") from error


def write(path: epath.Path | Path, content: bytes) -> None:
    """Write a file; a kill or a full disk leaves the one before or the new one."""
    temporary = path.with_name(f".claim-{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def upload_file(path: Path, out: epath.Path) -> None:
    """Copy a file into a bucket."""
    files, target = fsspec.core.url_to_fs(os.fspath(out))
    with reaching(out):
        files.put_file(str(path), target)


def remove_files(paths: Sequence[epath.Path]) -> None:
    """Remove files of one folder, many at a time where they are in a bucket."""
    if paths:
        files, _ = fsspec.core.url_to_fs(os.fspath(paths[0]))
        with reaching(paths[0]):
            files.rm([fsspec.core.url_to_fs(os.fspath(path))[1] for path in paths])


def remove(folder: epath.Path) -> None:
    """Remove a folder and all that is in it."""
    files, root = fsspec.core.url_to_fs(os.fspath(folder))
    with reaching(folder):
        files.rm(root, recursive=True)


def upload(folder: Path, out: epath.Path, last: str = "") -> None:
    """Copy a folder into a bucket; the file named `last`, which says that it is complete, after the others."""
    files, root = fsspec.core.url_to_fs(os.fspath(out))
    with reaching(out):
        for path in sorted(folder.rglob("*"), key=lambda path: path.name == last):
            if path.is_file():
                files.put_file(str(path), f"{root}/{path.relative_to(folder)}")


def cache_folder() -> Path:
    """The folder of copies on this host's disk: `$XDG_CACHE_HOME/sctd_jax`, by default `~/.cache/sctd_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sctd_jax")


def local_copy(
    folder: epath.Path, identity: str, log: Callable[[str], None], *, leave: str = "", advice: str = ""
) -> Path:
    """A folder in a bucket, copied to the cache folder unless a copy with this identity is there.

    Args:
      folder: folder in a bucket; folders within it are not copied.
      identity: text that changes with its content.
      log: receives a line where something is copied.
      leave: glob of the files that stay in the bucket, whose sizes in bytes the copy has in `ORIGIN_FILE`; '': none.
      advice: end of the message where the copy is larger than what is free.
    """
    cache = cache_folder()
    name = f"{os.fspath(folder)}\n{identity}" + (f"\nwithout {leave}" if leave else "")
    copy = cache / hashlib.sha256(name.encode()).hexdigest()[:16]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with copy.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a process of this host copies, the others wait
            if not copy.is_dir():
                _download(folder, copy, log, leave, advice)
    except OSError as error:
        raise of_disk(error)(f"{folder} cannot be copied to {copy}: {error}") from error
    return copy


def _download(folder: epath.Path, copy: Path, log: Callable[[str], None], leave: str, advice: str) -> None:
    work = copy.with_suffix(".incomplete")
    shutil.rmtree(work, ignore_errors=True)  # rest of a killed copy
    files, root = fsspec.core.url_to_fs(os.fspath(folder))
    with reaching(folder):
        listed = files.find(root, maxdepth=1, detail=True)
    found = {path: info["size"] for path, info in listed.items() if info["type"] == "file" and path[-1] != "/"}
    stay = {path for path in found if leave and fnmatch.fnmatchcase(Path(path).name, leave)}
    size, free = sum(found[path] for path in found.keys() - stay), shutil.disk_usage(copy.parent).free
    if size > free:
        raise UserError(
            f"{folder} has {size / 1e9:,.1f} GB, and the disk of {copy.parent} has {free / 1e9:,.1f} GB left{advice}"
        )
    log(f"copying {folder} to {copy}" + (f", without {len(stay):,} files that are read when needed" if stay else ""))
    try:
        work.mkdir()
        with reaching(folder):
            names = sorted(found.keys() - stay)
            files.get(names, [str(work / Path(name).name) for name in names])
        if leave:
            sizes = {Path(path).name: found[path] for path in sorted(stay)}
            (work / ORIGIN_FILE).write_text(json.dumps({"folder": os.fspath(folder), "sizes": sizes}))
        work.rename(copy)
    finally:
        shutil.rmtree(work, ignore_errors=True)
