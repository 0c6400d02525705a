"""Calls of the library `tokenizers`, whose failures are a UserError."""

import contextlib
import os
import sys
from collections.abc import Iterator

from sctd_jax.errors import UserError, printable


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike) -> Iterator[None]:
    """A UserError for what it raises: plain Exception, and a panic of Rust, which is not even one."""
    try:
        yield
    except (UserError, OSError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = printable(error)[:300]
        raise UserError(f"data.tokenizer {path}: not a tokenizer that can be used ({said})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries write on standard error, as Rust does where it panics: an exception says it."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
