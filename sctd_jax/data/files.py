"""Files that an input names: folders and globs, each real file once, and a count of what is passed over."""

import collections
import fnmatch
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec

from sctd_jax import storage
from sctd_jax.data import decoding
from sctd_jax.errors import UserError, printable

_KINDS = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".warc": "warc", ".wet": "warc",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
_PACKED_WITHIN = ("parquet", "arrow")  # are compressed inside, and read at any place
KNOWN = (
    ".txt, .text, .md, .json, .jsonl, .ndjson, .csv, .tsv, .warc, .wet and wikiextractor's wiki_00, each also with "
    ".gz, .bz2, .xz or .zst, and .parquet and .arrow"
)
# First bytes of a file that is named without a suffix, and what it then is; what begins otherwise is text.
_BEGINNINGS = (
    (b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow"), (b"WARC/", "warc"), (b"<doc ", "wiki"),
    (b"{", "json"), (b"[{", "json"),
)  # fmt: skip
AGAIN = "further names of files that are read"
_HIDDEN, _SPECIAL = "hidden files and folders", "broken links and special files"
_CLOSED = "folders without permission"
_FOLDERS = "folders that a glob names (** looks into them)"
_CACHED = "caches of datasets"
_LONGEST_LINE = 1 << 24  # bytes of a JSON line that is looked at
_REMOTE = ("gs", "s3", "memory")  # protocols of fsspec; the last one is for tests
_ELSEWHERE = {
    "http": "nothing is downloaded; fetch it first (curl -LO)",
    "https": "nothing is downloaded; fetch it first (curl -LO)",
    "hf": "nothing is downloaded; fetch it first (hf download --repo-type dataset NAME --local-dir FOLDER)",
}


def kind(path: str) -> str:
    """'text' or a key of `formats.READERS`, by a file's name, without a suffix by its content; '' if neither."""
    if (found := _kind_by_name(path)) or os.path.splitext(_unpacked_name(path))[1]:
        return found
    try:
        with decoding.unpacked(path) as file:
            head = file.read(64).lstrip()
    except decoding.DAMAGED:
        return "text"
    return next((kind for magic, kind in _BEGINNINGS if head.startswith(magic)), "text")


def _unpacked_name(path: str) -> str:
    name = os.path.basename(path).lower()
    return name.removesuffix(decoding.suffix_of_packed(name))


def _kind_by_name(path: str) -> str:
    name = _unpacked_name(path)
    if re.fullmatch(r"wiki_\d+", name):
        return "wiki"
    found = _KINDS.get(os.path.splitext(name)[1], "")
    return "" if found in _PACKED_WITHIN and not path.lower().endswith(name) else found


def identity(path: str) -> tuple:
    """Identity of a file, equal for all of its names."""
    stat = os.stat(path)
    # Size and time too: some network file systems give two files one number.
    number = (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)
    return number, stat.st_size, stat.st_mtime_ns


def split(text: str) -> tuple[str, ...]:
    """Inputs that commas separate; one after a backslash, or that an existing file has in its name, separates none."""
    parts, inputs = re.split(r"(?<!\\),", text), []
    while parts:
        joined = [",".join(parts[:count]).strip() for count in range(min(len(parts), 9), 0, -1)]
        taken = next((name for name in joined[:-1] if os.path.exists(re.sub(r":[\d.]+$", "", name))), joined[-1])
        inputs += [taken.replace(r"\,", ",")] if taken else []
        del parts[: len(joined) - joined.index(taken)]
    return tuple(inputs)


def find(text: str, passed: collections.Counter) -> dict[tuple, str]:
    """Find the files that an input names, by their identities, in a fixed order and each once.

    The input is a file, a folder (searched through links, without hidden files) or a glob; what is there besides is
    counted in `passed`, by suffix, and so are further names of a file.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", text.lower())
    if scheme and scheme[1] != "file":
        cure = _ELSEWHERE.get(scheme[1], "text is read from disks; copy it to one first")
        raise UserError(f"input {text}: {cure}, and name the file or folder")
    path = text.removeprefix("file://")
    if not os.path.exists(path):
        path = os.path.expanduser(os.path.expandvars(path))
    here: collections.Counter[str] = collections.Counter()
    if os.path.isfile(path):  # first: its name may hold characters that a glob reads otherwise
        paths = [path]
    elif os.path.isdir(path):
        paths = (found.removeprefix("./") for found in _walk(str(Path(path)), here))
        paths = [found for found in sorted(paths, key=lambda name: name.split("/")) if _is_input(found, here)]
    else:
        paths = []
        for found in _glob(path, here):
            if os.path.isfile(found):
                paths.append(found)
            else:
                here[_FOLDERS if os.path.isdir(found) else _SPECIAL] += 1
    passed.update(here)
    if not paths:
        over = f"; passed over: {describe(here)}" if here.total() else ""
        at = "" if path == text else f" ({path})"
        raise UserError(
            f"input {text!r}{at}: no file found (a file, a folder with {KNOWN}, or a glob is expected){over}"
        )
    for found in paths:
        if not os.access(found, os.R_OK):
            raise UserError(f"input {found}: no permission to read it")
        if not kind(found):
            with open(found, "rb") as file:
                what = decoding.what_is(found, file.read(32))
            raise UserError(f"input {found}: {what or f'unknown kind of file, expected {KNOWN}'}")
    names = collections.defaultdict(list)
    for found in paths:
        names[identity(found)].append(found)
    passed[AGAIN] += len(paths) - len(names)
    # Name the file itself rather than a link, and by the shortest way: a loop of links has many.
    best = {
        min(same, key=lambda name: (os.path.realpath(name) != os.path.abspath(name), name.count("/"), name))
        if len(same) > 1
        else same[0]: number
        for number, same in names.items()
    }
    return {best[found]: found for found in paths if found in best}


def find_remote(text: str, passed: collections.Counter) -> dict[tuple, str] | None:
    """`find` in a bucket, by one listing; None where the input names none.

    A folder's .json files are taken for JSON lines or arrays unread, as those of a folder on a disk are not.
    """
    protocol, separator, rest = text.partition("://")
    if not separator or protocol.lower() not in _REMOTE:
        return None
    text = f"{protocol.lower()}://{rest}"
    if not rest.strip("/"):
        raise UserError(f"input {text}: a bucket and a folder or file in it are expected")
    if text.startswith("gs"):
        storage.as_path(text)  # settings of its library
    try:
        bucket, root = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise UserError(f"input {text}: {protocol}:// needs another library ({error}): pip install s3fs") from error
    with storage.reaching(text):
        search = bucket.glob if glob.has_magic(root) else bucket.find  # a file finds itself
        found = search(root, detail=True)
    here: collections.Counter[str] = collections.Counter()
    files: dict[tuple, str] = {}
    for name in sorted(found, key=lambda name: name.split("/")):
        info, path = found[name], bucket.unstrip_protocol(name)
        below = name.removeprefix(root.rstrip("/")).strip("/")
        if info["type"] != "file":
            here[_FOLDERS] += glob.has_magic(root)
        elif any(part.startswith(".") for part in below.split("/")):
            here[_HIDDEN] += 1
        elif _kind_by_name(name) or not below:
            files[_identity_of(path, info)] = path
        else:
            here[os.path.splitext(_unpacked_name(name))[1] or "without a suffix"] += 1
    passed.update(here)
    if not files:
        over = f"; passed over: {describe(here)}" if here.total() else ""
        raise UserError(f"input {text!r}: no file found there (a file, a folder with {KNOWN}, or a glob){over}")
    return files


def remote_identity(path: str) -> tuple:
    """Identity of a file in a bucket, asked for now."""
    with storage.reaching(path):
        bucket, name = fsspec.core.url_to_fs(path)
        return _identity_of(path, bucket.info(name))


def _identity_of(path: str, info: dict) -> tuple:
    version = next((info[key] for key in ("generation", "etag", "ETag", "mtime", "LastModified") if key in info), "")
    return path, info["size"], str(version)


def stamp(identity: tuple) -> str:
    """Size and version of a file by its identity."""
    return ":".join(str(part) for part in identity[1:])


def describe(passed: collections.Counter) -> str:
    """Description of what was passed over, with its counts; '' for nothing."""
    special = (_CACHED, _CLOSED, _HIDDEN, _SPECIAL, _FOLDERS, AGAIN)
    kinds = collections.Counter({name: count for name, count in passed.items() if name not in special})
    parts = []
    if kinds:
        common = [f"{count:,} {printable(name)}" for name, count in sorted(kinds.items(), key=lambda x: (-x[1], x[0]))]
        common[6:] = [f"{len(common) - 6} more suffixes"] if len(common) > 6 else []
        parts.append(f"files of other kinds: {kinds.total():,} ({', '.join(common)})")
    return "; ".join(parts + [f"{name}: {passed[name]:,}" for name in special if passed[name]])


def _is_input(path: str, passed: collections.Counter) -> bool:
    """Whether a file that a folder holds is read: .json may be anything, and is if it holds many JSON objects."""
    name = os.path.basename(path).lower()
    packed = name.removeprefix(_unpacked_name(path)) or (".zip" if name.endswith(".zip") else "")
    suffix = (os.path.splitext(name.removesuffix(packed))[1] + packed) or "without a suffix"
    if not (found := _kind_by_name(path)):
        passed[suffix] += 1
    elif suffix.startswith(".json") and suffix.removesuffix(packed) == ".json" and not _holds_json_objects(path):
        passed[f"{suffix} without JSON lines or an array of objects"] += 1
    elif found == "arrow" and _is_cache(path):
        passed[_CACHED] += 1
    else:
        return True
    return False


def _is_cache(path: str) -> bool:
    """Whether an Arrow file beside the state.json of a `datasets.save_to_disk` is none of the dataset's own."""
    try:
        beside = storage.regular_file(os.path.join(os.path.dirname(path), "state.json"))
        with open(beside, encoding="utf-8") as file:
            own = [part["filename"] for part in json.load(file)["_data_files"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, UserError):
        return False
    return os.path.basename(path) not in own


def _holds_json_objects(path: str) -> bool:
    """Whether there are two lines at least, the first an object, or an array of objects begins.

    The reader refuses what cannot be read at all.
    """
    try:
        with decoding.open_utf8(path, lambda count: None) as file:
            if re.match(rb"\s*\[\s*\{", file.read(1 << 10)):
                return True
        with decoding.open_utf8(path, lambda count: None) as file:
            first, second = file.readline(_LONGEST_LINE), file.readline(_LONGEST_LINE)
        return second.startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False
    except (*decoding.DAMAGED, UserError):
        return True


def _walk(root: str, passed: collections.Counter, hidden: bool = False) -> Iterator[str]:
    """All files under a folder, through links; each folder once, by its own way if it has one without a link."""
    seen, pending, links = set(), [root], []
    while pending:
        folder = pending.pop()
        try:
            number = identity(folder)[0]
            with os.scandir(folder) as entries:
                entries = [] if number in seen else list(entries)
        except OSError as error:
            if folder == root or not isinstance(error, PermissionError):
                raise UserError(f"input {folder}: the folder cannot be read ({error.strerror})") from error
            passed[_CLOSED] += 1  # lost+found is such a folder
            entries = []
        else:
            seen.add(number)
        for entry in entries:
            if entry.name.startswith(".") and not hidden:
                passed[_HIDDEN] += 1
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(entry.path)
            elif not entry.is_symlink() and entry.is_dir():
                pending.append(entry.path)
            elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
                yield entry.path
            else:
                passed[_SPECIAL] += 1
        if not pending:
            pending, links = sorted(links, reverse=True), []


def _glob(pattern: str, passed: collections.Counter) -> list[str]:
    """`glob.glob(recursive=True)` that also ends where links make two loops, and tells of closed folders."""
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    at = parts.index("**")
    before, after = "/".join(parts[:at]), [part for part in parts[at:] if part]
    beside: collections.Counter[str] = collections.Counter()
    found: list[str] = []
    for root in glob.glob(before) if before else ["/" if pattern.startswith("/") else "."]:
        if os.path.isdir(root):
            hidden = any(part.startswith(".") for part in after)
            for path in _walk(root, beside, hidden):
                if _matches(path[len(root) :].strip("/").split("/"), after):
                    found.append(path)
    passed[_CLOSED] += beside[_CLOSED]
    return sorted(found if before or pattern.startswith("/") else [path.removeprefix("./") for path in found])


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        visible = next((i for i, part in enumerate(parts) if part.startswith(".")), len(parts))
        return any(_matches(parts[i:], pattern[1:]) for i in range(visible + 1))
    if not parts or parts[0].startswith(".") > pattern[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
