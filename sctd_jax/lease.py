"""Lease of a folder for one process at a time, which ends with its owner, however that ends.

The lease is a file that says who holds it and is renewed while it is held. On a disk it is locked besides, and the
system lets go of a dead process's lock at once. Where nothing can be locked (a bucket) or the lock is not shared
between hosts (some NFS and Lustre mounts), a lease counts as left by a dead process when nobody has renewed it for
`STALE` seconds of the looker's own clock: clocks are not compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from sctd_jax import storage
from sctd_jax.errors import UserError, of_disk, printable, say


class HeldError(UserError):
    """Another process, which the message names, works in the folder."""

    def __init__(self, folder: epath.Path, record: dict | None):
        owner = _owner(record or {})
        super().__init__(f"{folder} is in use by {owner}; wait for its end, stop it or choose another folder")


LEASE_FILE = ".lease"
RENEW, STALE, SETTLE = 20.0, 120.0, 1.0  # seconds
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def _machine() -> str:
    """The running kernel and the space of process numbers; '' where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _record(read: Callable[[], bytes]) -> dict | None:
    """A record; None where there is none, {} for one that is empty or damaged, whose owner may live."""
    try:
        content = read()
    except FileNotFoundError:
        return None
    try:
        record = json.loads(content)
        return record if isinstance(record, dict) else {}
    except ValueError:
        return {}


def _is_gone(record: dict) -> bool:
    """Whether a record's owner was a process of this machine that is gone."""
    if not _machine() or record.get("machine") != _machine():
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, TypeError, KeyError):
        return False
    return False


class _OnDisk:
    """The file of a lease on a disk, locked."""

    def __init__(self, path: Path):
        self._path, self._locks = path, False
        self._made: list[Path] = []  # folders, the innermost first
        self._descriptor = -1  # not open

    def create(self, record: dict) -> bool:
        self._made = [folder for folder in self._path.parents if not folder.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        if not self.lock():
            return False
        self.write(record)
        return True

    def lock(self) -> bool:
        """Lock the file; True too where files cannot be locked, which `proves_death` knows."""
        for _ in range(100):
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locks = True
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _CANNOT_LOCK:
                    raise
                return True
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
                    return True
            os.close(self._descriptor)  # the owner has just ended and removed it
            self._descriptor = -1
        return False

    def proves_death(self, record: dict) -> bool:
        """Whether to have the lock means that the record's owner is dead: locks of another kernel may not be seen."""
        return self._locks and bool(record.get("machine")) and record["machine"].split()[0] == _machine().split()[0]

    def read(self) -> dict | None:
        return _record(storage.regular_file(self._path).read_bytes)

    def write(self, record: dict) -> None:
        # Written in place, for the lock is the file's.
        content = json.dumps(record).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def release(self, token: str) -> None:
        if self._descriptor < 0:
            return
        there = self.read()
        if there is not None and (there.get("token") == token or (not there and self._locks)):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(OSError):  # a folder that is not empty: the work has begun
            for folder in self._made:
                folder.rmdir()


class _Object:
    """The object of a lease in a bucket."""

    def __init__(self, path: epath.Path):
        self._files, self._path = fsspec.core.url_to_fs(os.fspath(path))

    def create(self, record: dict) -> bool:
        try:
            self._files.pipe_file(self._path, json.dumps(record).encode(), mode="create")
        except Exception:
            there = self.read()
            if there is None:
                raise
            return there.get("token") == record["token"]  # the answer to the first request was lost
        return True

    def lock(self) -> bool:
        return True

    def proves_death(self, record: dict) -> bool:
        """Whether the record's owner was a process of this machine that is gone."""
        return _is_gone(record)

    def read(self) -> dict | None:
        return _record(lambda: self._files.cat_file(self._path))

    def write(self, record: dict) -> None:
        self._files.pipe_file(self._path, json.dumps(record).encode())

    def release(self, token: str) -> None:
        if (self.read() or {}).get("token") == token:
            self._files.rm_file(self._path)


@contextlib.contextmanager
def hold(
    folder: epath.Path, what: str, log: Callable[[str], None] = say, *, beside: bool = False
) -> Iterator[Callable[[], None]]:
    """Keep other processes (and other calls in this one) from writing into a folder, which is made if it is missing.

    The others' message says `what` is done there: 'training'. For a folder that must not exist yet the lease lies
    `beside` it, in the folder above. TryAgainError if the bucket cannot be reached.

    Gives a check to call before something is written that matters: it raises where another process has taken the lease
    over. That happens after a pause of this one (a suspended machine, a bucket out of reach) that others took for its
    death.
    """
    path = folder.parent / f".{folder.name}{LEASE_FILE}" if beside else folder / LEASE_FILE
    record: dict[str, Any] = {
        "what": what, "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), "token": uuid.uuid4().hex,
    }  # fmt: skip
    if storage.is_remote(path):
        storage.check_writable(folder)
    file = _Object(path) if storage.is_remote(path) else _OnDisk(Path(path))
    with storage.reaching(folder):
        try:
            _take(folder, file, record, log)
        except BaseException as error:
            file.release(record["token"])
            if isinstance(error, OSError) and not storage.is_remote(path):
                raise of_disk(error)(f"{folder} cannot be written: {error}") from error
            raise
    ended = threading.Event()

    def check() -> None:
        with storage.reaching(folder):
            there = file.read()
        if there and there.get("token") != record["token"]:
            raise UserError(f"{folder} was taken over by {_owner(there)} while this process stood still; "
                            "it writes nothing more there")  # fmt: skip

    def keep_up() -> None:
        while not ended.wait(RENEW):
            with contextlib.suppress(Exception):  # a bucket out of reach: the next time may do; `check` asks
                there = file.read()
                if not there or there.get("token") == record["token"]:
                    file.write({**record, "renewed": time.time()})

    keeper = threading.Thread(target=keep_up, name="lease", daemon=True)
    keeper.start()
    try:
        yield check
    finally:
        ended.set()
        keeper.join(timeout=SETTLE)
        with contextlib.suppress(Exception):  # must not hide what ended the work; a lease that stays goes stale
            file.release(record["token"])


def holder(folder: epath.Path) -> str | None:
    """The holder of a folder's lease, in words; None where there is none, or it was a process of this machine.

    It only looks: whether a process of another machine still lives is not waited for.
    """
    path = folder / LEASE_FILE
    with storage.reaching(folder):
        record = _record(storage.regular_file(path).read_bytes) if path.exists() else None
    return None if record is None or _is_gone(record) else _owner(record)


def _take(folder: epath.Path, file: _OnDisk | _Object, record: dict, log: Callable[[str], None]) -> None:
    if file.create(record):
        return
    there = file.read()
    if not file.lock():
        raise HeldError(folder, there)
    if there is not None and not file.proves_death(there):
        log(f"{folder} was left by {_owner(there)}, or is in use: looking for {STALE:.0f} s whether it still is")
        began = time.monotonic()
        while time.monotonic() - began < STALE:
            time.sleep(min(RENEW / 4, STALE / 4))
            now = file.read()
            if now is None:
                break
            if now != there:
                raise HeldError(folder, now)
    if there is None or not file.proves_death(there):
        file.write(record)
        time.sleep(SETTLE)  # another one may have taken it at the same moment: the last to write has it
        now = file.read()
        if now and now.get("token") != record["token"]:
            raise HeldError(folder, now)
    file.write(record)


def _owner(record: dict) -> str:
    if not record.get("pid"):
        return "a process that does not say which"
    what, host, pid, since = (printable(record.get(name, "?")) for name in ("what", "host", "pid", "since"))
    return f"process {pid} on {host} ({what}, since {since})"
