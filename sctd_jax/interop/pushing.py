"""An export -> a repository of the Hugging Face hub, in one commit: all of it arrives, or nothing changes there.

The token is the library's own affair (`hf auth login`, HF_TOKEN): it is neither taken, shown nor written here.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sctd_jax.errors import TryAgainError, UserError, printable
from sctd_jax.hf import hub, write
from sctd_jax.hf.convert import is_weights
from sctd_jax.hf.read import listed

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Fields of config.json in which two states of one model may differ.
_FREE = re.compile(r".*(dropout|dropout_prob|dtype)|transformers_version|initializer_range|_name_or_path")


@dataclasses.dataclass(frozen=True)
class Target:
    """A repository that may be pushed to."""

    repo: str  # OWNER/NAME
    private: bool  # whether to make it a private one, where it is new
    head: str = ""  # the commit that the push follows; '' where there is no repository yet
    files: tuple[str, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its config.json


def find_target(repo: str, private: bool) -> Target:
    """Look at a repository before the long work of an export: its name, the token's rights, what is there already.

    TryAgainError if the hub cannot be reached.
    """
    what = f"--push {repo}"
    if not _NAME.fullmatch(repo):
        raise UserError(f"{what}: expected OWNER/NAME, a user or an organisation of the hub and the model's name")
    hub.check_library(what)
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if not get_token():
            raise UserError(f"{what}: no token is there: hf auth login, or HF_TOKEN with one that may write")
        return _look(repo, private)
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"{what}: {hub.first_line(error)}") from error
    except Exception as error:  # exceptions of many kinds
        raise _explanation(error, repo, "") from error


def _look(repo: str, private: bool) -> Target:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        info = api.model_info(repo, timeout=hub.SECONDS)
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:
            raise
        role = ((api.whoami().get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise UserError(f"--push {repo}: the token may only read; take one that may write") from error
        return Target(repo, private)
    api.auth_check(repo, write=True)
    if private and not info.private:
        raise UserError(
            f"--push {repo}: the repository is there and public, and --private is for new ones: make it private first "
            f"({api.endpoint}/{repo}/settings)"
        )
    files = tuple(file.rfilename for file in info.siblings or ())
    if others := [name for name in files if is_weights(name) and not write.is_ours(name)]:
        raise UserError(
            f"--push {repo}: the repository has weights that no export replaces ({printable(others[0])}): delete them "
            "there, or choose another name"
        )
    config: dict[str, Any] = {}
    if hub.CONFIG_FILE in files:
        config = hub.read_config(f"--push {repo}", repo, info.sha)
    return Target(repo, private, info.sha, files, config)


def push(folder: Path, names: Sequence[str], target: Target, message: str, log: Callable[[str], None]) -> None:
    """Upload the files `names` of an export, and delete those of an earlier one that are not among them.

    A repository with another model is refused. `message` is the commit's; `log` is told what changed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo, api = target.repo, HfApi()
    again = f"; the export is in {folder}, and the same command with --force tries again"
    ours = json.loads((folder / hub.CONFIG_FILE).read_text(encoding="utf-8"))
    if other := _differences(target.config, ours):
        raise UserError(
            f"--push {repo}: the repository has another model ({printable(other[0])}): choose another name; the export "
            f"is in {folder}"
        )
    gone = [name for name in target.files if write.is_ours(name) and name not in names]
    stay = [name for name in target.files if name not in (*names, *gone, ".gitattributes")]
    operations = [
        *(CommitOperationAdd(name, folder / name) for name in names),
        *(CommitOperationDelete(name) for name in gone),
    ]
    try:
        if not target.head:
            api.create_repo(repo, private=target.private or None)
            again = f"; {repo} is new and empty{again}"
        done = api.create_commit(repo, operations, commit_message=message, parent_commit=target.head or None)
    except Exception as error:  # exceptions of many kinds
        raise _explanation(error, repo, again) from error
    place = f"{api.endpoint}/{repo}"
    if done.oid == target.head:
        log(f"nothing to push: {place} has these files already, in commit {done.oid}")
        return
    size = sum((folder / name).stat().st_size for name in names)
    before = f"after {target.head}, which keeps what was there" if target.head else "the repository is new"
    log(f"pushed {len(names)} files, {size / 1e6:,.1f} MB, to {place}: commit {done.oid}, {before}")
    if gone:
        log(f"deleted there: {len(gone)} files of an earlier export ({listed(gone)})")
    if stay:
        log(f"left there as they are: {len(stay)} other files ({listed(stay)})")


def _differences(there: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Fields of two `config.json` by which they are those of different models."""
    return [
        f"{name} {there[name]} there, {value} here"
        for name, value in ours.items()
        if name in there and there[name] != value and not _FREE.fullmatch(name)
    ]


def _explanation(error: Exception, repo: str, again: str) -> UserError:
    """One line on what the hub's library has raised; `again` ends it."""
    from huggingface_hub import constants

    found, what = hub.failure(error), f"--push {repo}: {constants.ENDPOINT}"
    if not found:
        return UserError(f"--push {repo}: {hub.first_line(error)}{again}")
    if found.offline:
        return UserError(f"--push {repo}: {found.reason}, which forbids to push{again}")
    if found.temporary:
        return TryAgainError(f"{what} {found.what_failed}{again}")
    if found.status == 401:
        return UserError(f"{what} does not know the token ({found.reason}): hf auth login, or another HF_TOKEN{again}")
    if found.status == 403:
        return UserError(f"{what} does not let this token write there ({found.reason}): take one that may{again}")
    if found.status == 412:
        return UserError(f"{what} has a newer commit than before the export ({found.reason}){again}")
    return UserError(f"{what} refuses it ({found.reason}){again}")
