"""Models of the Hugging Face hub, `hf:OWNER/NAME[@REVISION]`, in the cache of its library; what its failures mean.

A revision is a branch, a tag or a commit, `main` where none is named. A process that reads a name twice reads the same
commit. A pickle is never downloaded.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from sctd_jax import storage
from sctd_jax.data.hub_datasets import PREFIX, is_one
from sctd_jax.errors import TryAgainError, UserError, printable
from sctd_jax.hf import config_json
from sctd_jax.hf.convert import FILES, canonical, download_command, is_weights

SECONDS = 10.0  # until a hub that does not answer counts as out of reach; its library would wait for ever
CONFIG_FILE = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
_commits: dict[str, str] = {}  # commits by the names that this process has read
_WANTED: dict[str, Any] = {"allow_patterns": list(FILES), "ignore_patterns": ["*/*"]}


class Failure(NamedTuple):
    """Part that the network or the hub had in an exception."""

    reason: str  # words for a message
    error: BaseException  # raised by the hub's library, or by the one below it
    status: int | None = None  # status of the hub's answer; None: there was none
    offline: bool = False  # whether HF_HUB_OFFLINE forbade to ask

    @property
    def temporary(self) -> bool:
        """Whether the same request may work another time."""
        return not self.offline and (self.status is None or self.status in (408, 429) or self.status >= 500)

    @property
    def what_failed(self) -> str:
        """Words of a temporary failure, after the hub's address."""
        return f"{'cannot be reached' if self.status is None else 'failed'} ({self.reason})"

    @property
    def is_bad_token(self) -> bool:
        """Whether there was a token that the hub does not know; it refuses what is public too then."""
        return self.status == 401 and "Invalid credentials" in self.reason


def check_library(what: str) -> None:
    """Check that `huggingface_hub` is installed, which `what` needs, and leave what there is to say to us."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError as error:
        raise UserError(f"{what} needs huggingface_hub: pip install huggingface_hub, or '.[hub]'") from error
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()


def failure(error: BaseException) -> Failure | None:
    """Part of network and hub in an exception of the hub's library, or in what led to it; None if they had none."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OfflineModeIsEnabled):
            return Failure("HF_HUB_OFFLINE is set", one, offline=True)
        if isinstance(one, HfHubHTTPError):
            # The whole message has addresses, and those of its storage are signed.
            said, status = printable((one.server_message or "").strip().partition("\n")[0]), one.response.status_code
            return Failure(f"HTTP {status}{said and f': {said}'}", one, status)
        by_xet = isinstance(one, ConnectionError | TimeoutError)
        if by_xet or type(one).__module__.partition(".")[0] in ("httpx", "httpx2"):
            return Failure(first_line(one), one)
        one = one.__cause__ or one.__context__
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its kind where it has none."""
    return printable((str(error).strip() or type(error).__name__).partition("\n")[0])


def parse(name: str) -> tuple[str, str | None]:
    """(repository, revision) of a name; revision None where it has none."""
    if not (found := _NAME.fullmatch(name.removeprefix(PREFIX))):
        raise UserError(f"{name}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, a model of the hub")
    return canonical(found[1]), found[2]


def pinned(name: str, log: Callable[[str], None]) -> str:
    """A name of the hub with the commit that it stands for; a path as it is.

    `log` is told if the hub cannot be asked and the cache says which commit that is.
    """
    if not is_one(name):
        return name
    repo, revision = parse(name)
    if name not in _commits:
        _commits[name] = _commit(name, repo, revision, log)
    return f"{PREFIX}{repo}@{_commits[name]}"


def as_begun(name: str, before: str) -> str:
    """`before`, the pinned name with which a run began, if `name` is the same model without a revision; else `name`."""
    same = is_one(name) and is_one(before) and parse(name) == (parse(before)[0], None)
    return before if same else name


def download(name: str, log: Callable[[str], None]) -> Path:
    """The folder of a model of the hub, downloaded unless the cache has all of it; `log` is told the commit.

    Configuration, tokenizer and safetensors are taken, once the configuration alone is known to be one of ours.
    TryAgainError if the hub cannot be reached.
    """
    exact = pinned(name, log)
    repo, commit = parse(exact)
    with _explained(name, repo, commit):
        folder = _cached(repo, commit) or _download(name, repo, commit, log)
    log(f"{name} is {f'{exact}, in ' if exact != name else 'in '}{folder}")
    return folder


def _commit(name: str, repo: str, revision: str | None, log: Callable[[str], None]) -> str:
    check_library(name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    if revision and _COMMIT.fullmatch(revision):
        return revision
    api = HfApi()
    with _explained(name, repo, revision):
        try:
            api.model_info(repo, revision=revision, timeout=SECONDS)
            return api.resolve_revision(repo, revision=revision).resolved  # the cache keeps it
        except Exception as error:  # exceptions of many kinds
            found = failure(error)
            if not found or not (found.offline or found.temporary):
                raise
            try:
                commit = api.resolve_revision(repo, revision=revision, local_files_only=True).resolved
            except RevisionResolutionError:
                raise error from None
            log(f"{name}: {found.reason}; the commit is that of the last download")
            return commit


def _cached(repo: str, commit: str | None) -> Path | None:
    """The folder of a commit of which the cache is known to have all."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        get_cached_repo_tree(repo, revision=commit)  # else nobody knows what is missing
        return Path(snapshot_download(repo, revision=commit, local_files_only=True, **_WANTED))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return None


def _download(name: str, repo: str, commit: str | None, log: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    info = HfApi().model_info(repo, revision=commit, timeout=SECONDS)
    there = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
    if CONFIG_FILE not in there:
        raise UserError(f"{name} holds no {CONFIG_FILE}, which says what the network looks like")
    config_json.from_json(read_config(name, repo, commit), f"{name}, {CONFIG_FILE}")
    if not any(file.endswith(".safetensors") for file in there):
        others, folder = [file for file in there if is_weights(file)], repo.rpartition("/")[2]
        raise UserError(
            f"{name} holds no safetensors, and nothing else is read"
            + (f" ({printable(others[0])} is there): " if others else ": ")
            + f"hf download {repo} --local-dir {folder}, python -m sctd_jax.interop.convert {folder}, and name {folder}"
        )
    log(f"downloading {name} to {constants.HF_HUB_CACHE}")
    return Path(snapshot_download(repo, revision=commit, **_WANTED))


def read_config(what: str, repo: str, commit: str | None) -> dict[str, Any]:
    """The `config.json` of a repository; `what` is called in the message that it is damaged."""
    from huggingface_hub import hf_hub_download

    path = epath.Path(hf_hub_download(repo, CONFIG_FILE, revision=commit))
    try:
        return storage.read_json(path)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


@contextlib.contextmanager
def _explained(name: str, repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's library raises into one line that names the model and says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # exceptions of many kinds
        raise _explanation(error, name, repo, revision) from error


def _explanation(error: Exception, name: str, repo: str, revision: str | None) -> UserError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RevisionNotFoundError

    found, hub, cache = failure(error), constants.ENDPOINT, constants.HF_HUB_CACHE
    elsewhere = f"where there is no network, download it elsewhere ({download_command(repo)}) and name the folder"
    who = "say who you are by hf auth login or HF_TOKEN"
    if isinstance(error, HFValidationError):
        return UserError(f"{name}: {first_line(error)}")
    if not found:
        return UserError(f"{name} cannot be downloaded to {cache}: {first_line(error)}; {elsewhere}")
    if found.offline:
        return UserError(f"{name}: {found.reason}, and {cache} does not have all of it; {elsewhere}")
    if found.temporary:
        return TryAgainError(f"{name}: {hub} {found.what_failed}; {elsewhere}")
    if found.is_bad_token:
        return UserError(f"{name}: {hub} does not know the token ({found.reason}): hf auth login, or another HF_TOKEN")
    if isinstance(found.error, RevisionNotFoundError):
        return UserError(f"{name}: {hub}/{repo} has no revision {revision}")
    if isinstance(found.error, GatedRepoError):
        return UserError(f"{name}: access has to be granted first ({found.reason}): ask at {hub}/{repo}, and {who}")
    return UserError(f"{name}: {hub} has no such model, or not for you ({found.reason}); if it is private, {who}")
