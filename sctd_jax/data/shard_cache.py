"""Shards of rows that stay in a bucket: copied to this host's disk when they are needed, or before, within a budget.

The copies of all buckets, runs and processes of a host are in one folder. Every file there is whole, but for `*.part`,
which its process holds locked while it writes; one that nobody holds is what a killed process left. Who reads a copy
holds it locked too, and only what nobody holds is removed, the least recently used first.
"""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import fsspec

from sctd_jax import storage
from sctd_jax.errors import TryAgainError, UserError, of_disk

_THREADS = 8  # downloads at a time, beside the one that the loader waits for
_PIECE = 32 << 20  # bytes of a request
_WAITS = (1.0, 4.0, 16.0)  # seconds before a download that failed is tried again
_LOOK = 0.1  # seconds between looks whether a download has ended


class Held(NamedTuple):
    """A copy that no process removes before `release`."""

    path: Path
    descriptor: int

    def release(self) -> None:
        """Let the copy be removed, after those that were used before."""
        _touch(self.descriptor)
        os.close(self.descriptor)


class _NoRoomError(UserError):
    """Everything in the folder is being read."""


class ShardCache:
    """The shards of one folder in a bucket.

    Args:
      origin: the folder, `gs://...`.
      sizes: bytes of each shard by its name.
      key: beginning of the copies' names, another one for other content of that folder.
      budget: bytes that all copies of this host may have together.
      log: receives a line for each failure that is tried again.
    """

    def __init__(
        self, origin: str, sizes: Mapping[str, int], key: str, budget: int, log: Callable[[str], None] = print
    ):
        self.origin, self.sizes, self.budget, self._key, self._log = origin, sizes, budget, key, log
        self.folder = storage.cache_folder() / "shards"
        self._now: frozenset[str] = frozenset()
        self._ahead: frozenset[str] = frozenset()
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        storage.as_path(origin)  # settles what gcsfs does
        self._files, self._root = fsspec.core.url_to_fs(origin)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = sum(size for _, size, _ in self._copies())
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(f"{self.folder} cannot be used for copies of shards: {error}") from error
        if min(budget, sum(sizes.values())) > used + free:
            raise UserError(
                f"config.data.cache_gb is {budget / 1e9:g}, but the disk of {self.folder} has only "
                f"{(used + free) / 1e9:.1f} GB for copies of shards: lower it, or set XDG_CACHE_HOME to another disk"
            )

    def hold(self, name: str) -> Held:
        """The copy of a shard, downloaded now if it is not there.

        Raises:
          TryAgainError: the bucket does not give it.
        """
        held = self._hold(name, wait=True)
        assert held is not None
        return held

    def want(self, now: Sequence[str], ahead: Sequence[str]) -> None:
        """Have the shards downloaded that are read now, and those that are read next as far as there is room.

        What was wanted before and is not begun is forgotten.
        """
        with self._changed:
            self._now, self._ahead = frozenset(now), frozenset(ahead)
            self._queue = deque(name for name in (*now, *ahead) if not self._path(name).exists())
            while len(self._threads) < min(_THREADS, len(self._queue)):
                # Daemons: the end of a process waits for no download, whose rest the next one removes.
                self._threads.append(threading.Thread(target=self._work, name="shards", daemon=True))
                self._threads[-1].start()
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, each after the download that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def remove(self, name: str) -> None:
        """Remove a copy that is damaged."""
        self._path(name).unlink(missing_ok=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                name = self._queue.popleft()
            try:
                held = self._hold(name, wait=False)
            except (UserError, OSError) as error:
                self._log(f"note: {error}; it is tried again when the shard is needed")
                continue
            if held:
                held.release()
            else:
                with self._changed:
                    self._queue.clear()  # no room before what is read now has been read

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._key}-{name}"

    def _hold(self, name: str, wait: bool) -> Held | None:
        """Do what `hold` does; without `wait` None where there is no room, and no copy goes that this loader wants."""
        path, size = self._path(name), self.sizes[name]
        part = path.with_name(f"{path.name}.part")
        while True:
            with contextlib.suppress(FileNotFoundError):
                descriptor = _open(path)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.fstat(descriptor).st_nlink:
                    _touch(descriptor)
                    return Held(path, descriptor)
                os.close(descriptor)  # removed between the two
            with self._locked():
                if path.exists():
                    continue  # another thread or process was faster
                begun, spare = self._begun(part), () if wait else self._now | self._ahead
                try:
                    descriptor = self._begin(part, size, spare) if begun is None else None
                except _NoRoomError:
                    if wait:
                        raise
                    return None
            if begun is not None:
                fcntl.flock(begun, fcntl.LOCK_SH)  # until it is whole, or its process has ended
                os.close(begun)
            elif descriptor is None:
                time.sleep(_LOOK)
            else:
                self._fill(name, descriptor, part, path)
                return Held(path, descriptor)

    def _begun(self, part: Path) -> int | None:
        """Descriptor of a download that some thread or process is at; None if there is none."""
        if not part.exists():
            return None
        descriptor = _open(part)
        if not _free(descriptor):
            return descriptor
        part.unlink()
        os.close(descriptor)
        return None

    def _begin(self, part: Path, size: int, spare: Collection[str]) -> int | None:
        """Descriptor of a new file, held and of `size` bytes, for which there is room; None if it may come soon."""
        copies = self._copies()
        missing, busy = sum(bytes_ for _, bytes_, _ in copies) + size - self.budget, False
        spared, late = ({self._path(name) for name in names} for names in (spare, self._now))
        # Shards that this loader reads now and has not yet opened go last.
        for _, bytes_, copy in sorted(copies, key=lambda one: (one[2] in late, one)):
            if missing <= 0:
                break
            if copy in spared:
                continue
            descriptor = _open(copy)
            if _free(descriptor):
                copy.unlink()
                missing -= bytes_
            else:
                busy = busy or copy.suffix == ".part"
            os.close(descriptor)
        if missing > 0:
            if busy and not spare:
                return None  # shards that were downloaded ahead and are not read yet can go
            raise _NoRoomError(
                f"config.data.cache_gb ({self.budget / 1e9:g}) cannot hold the shards that the processes of this host "
                f"read at once: {missing / 1e9:.3g} GB more are needed; raise it"
            )
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, size)  # counts from now on
        return descriptor

    def _fill(self, name: str, descriptor: int, part: Path, path: Path) -> None:
        try:
            self._download(name, descriptor, self.sizes[name])
        except BaseException:
            with self._locked():
                part.unlink()
                os.close(descriptor)
            raise
        with self._locked():
            part.rename(path)
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def _download(self, name: str, descriptor: int, size: int) -> None:
        remote = f"{self.origin}/{name}"
        for wait in (*_WAITS, None):
            try:
                for start in range(0, size, _PIECE):
                    end = min(start + _PIECE, size)
                    with storage.reaching(remote):
                        piece = self._files.cat_file(f"{self._root}/{name}", start=start, end=end)
                    if len(piece) != end - start:
                        raise TryAgainError(f"{remote} was cut off after {start + len(piece):,} of {size:,} bytes")
                    if os.pwrite(descriptor, piece, start) != len(piece):
                        raise UserError(f"{self.folder} is full: lower config.data.cache_gb")
                return
            except TryAgainError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise UserError(f"{remote} is gone, but the run needs it: prepare the rows again") from error
                if wait is None:
                    raise
                self._log(f"note: {error}; trying again in {wait:g} s")
                time.sleep(wait)
            except OSError as error:
                raise of_disk(error)(f"a shard cannot be written to {self.folder}: {error}") from error

    def _copies(self) -> list[tuple[float, int, Path]]:
        """(when it was used last, bytes, path) of each file in the folder."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name != ".lock":
                    found.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread of one process at a time."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _open(path: Path) -> int:
    """Descriptor of a file, for writing too: on NFS nothing else can be held alone."""
    return os.open(path, os.O_RDWR)


def _free(descriptor: int) -> bool:
    """Whether nobody else holds the file; it is held then by this descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _touch(descriptor: int) -> None:
    """Note that the file is used now, more exactly than the kernel's own clock of files does."""
    os.utime(descriptor, ns=(time.time_ns(),) * 2)
