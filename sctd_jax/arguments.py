"""The command lines of everything but sctd_jax.main: argparse, with one line for what is wrong."""

import argparse
import collections
import difflib
import itertools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sctd_jax.errors import UserError, brief, say
from sctd_jax.fields import in_plain_digits

# First bytes of what matplotlib writes: PNG, PDF, PostScript, SVG and packed, JPEG, TIFF, WebP, GIF, AVIF, PGF.
_PICTURES = (
    b"\x89PNG",
    b"%PDF",
    b"%!PS",
    b"<svg",
    b"\x1f\x8b",
    b"\xff\xd8\xff",
    b"II*\0",
    b"RIFF",
    b"GIF8",
    b"ftypavif",
    b"%% Creator: Matplotlib",
)


class CommandParser(argparse.ArgumentParser):
    """A mistake is one line and exit status 2; options are written out, so that a new one changes no old command.

    The description is a module's docstring, which python -OO leaves out; its first line is shown.
    """

    def __init__(self, description: str | None = None, **kwargs) -> None:
        super().__init__(allow_abbrev=False, description=(description or "").split("\n")[0], **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Argparse's, but for an option that is not known: that is said first, whatever is missing besides."""
        args = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        given: collections.Counter[str] = collections.Counter()
        for argument in itertools.takewhile(lambda argument: argument != "--", () if self._subparsers else args):
            option = argument.partition("=")[0]
            if option.startswith("--") and option not in known:
                near = difflib.get_close_matches(option.replace("_", "-"), known, 1)
                self.error(f"{option} is not known" + (f"; did you mean {near[0]}?" if near else ""))
            given[option] += isinstance(known.get(option), argparse._StoreAction)
        tell_of_repeated(given)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the command."""
        unexpected = message.partition("unrecognized arguments: ")[2].split()
        if unexpected:
            more = f" and {len(unexpected) - 1} more" if unexpected[1:] else ""
            message = f"unexpected argument {unexpected[0]}{more}; an option takes one value, so put a glob into quotes"
        print(f"error: {brief(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def tell_of_repeated(given: dict[str, int]) -> None:
    """Say which options are given more than once: a script may append its own to a command of somebody else."""
    for option, times in given.items():
        if times > 1:
            say(f"note: {option} is given {times:,} times: the last one counts")


def local_path(text: str) -> Path:
    """A path on this host's disk, where a bucket will not do."""
    if "://" in any_path(text):
        raise argparse.ArgumentTypeError(f"a path on a disk is expected, found {text}")
    return Path(os.path.expanduser(text))


def any_path(text: str) -> str:
    """A path on a disk or in a bucket."""
    if not text:
        raise argparse.ArgumentTypeError("must name a file or folder, found nothing")
    return text


def picture(text: str) -> Path:
    """A file on this host's disk whose suffix says the format of a picture."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase  # importing it takes seconds
    except ValueError as error:  # MPLBACKEND is no such
        raise argparse.ArgumentTypeError(f"cannot be drawn: matplotlib: {error}") from None

    path = local_path(text)
    if (path.exists() and not path.is_file()) or path.suffix[1:].lower() not in FigureCanvasBase.filetypes:
        raise argparse.ArgumentTypeError(f"must be a file named as a picture, such as loss.png, found {text!r}")
    from sctd_jax.storage import check_own  # its libraries are not where sctd_jax.interop.convert runs

    try:
        check_own(path, "picture", *_PICTURES, *([b""] if path.suffix in (".raw", ".rgba") else []))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def number(kind: type, lowest: float, below: float | None = None) -> Callable[[str], float]:
    """Reads an int or float in ASCII that is at least `lowest` and less than `below`: None for an int's 32 bits."""
    below = below or (1 << 31 if kind is int else math.inf)

    def read(text: str) -> float:
        try:
            value = kind(text if in_plain_digits(text) else "")
        except ValueError:
            words = {int: "a whole number", float: "a number"}[kind]
            raise argparse.ArgumentTypeError(f"must be {words}, found {text!r:.40}") from None
        if not lowest <= value < below:
            limit = f" and below {below}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be at least {lowest}{limit}, found {text:.40}")
        return value

    return read
