"""Exceptions that end a command with a message for the person at the terminal. A leaf: anyone may import it.

Every public function of the package may raise UserError for what that person can put right, so docstrings name other
exceptions only.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any


class UserError(Exception):
    """Bad config, data, checkpoint or topology.

    The message names the field or file, what was found and what is expected; the commands print it
    without a traceback and exit with status 2.
    """


class DivergedError(UserError):
    """A training whose numbers are not finite: too many steps in a row, every step, or the outputs."""


class TryAgainError(UserError):
    """Nothing is wrong with the command: a host, a bucket or a disk failed it, and it may work another time."""


TRY_AGAIN_STATUS = 75  # sysexits.h: a temporary failure; launch/babysit.sh runs the command again on it
# Requests to stop. A shell's background job ignores Ctrl-C, and one of nohup the end of its terminal: it goes on.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CLOUD_LIBRARIES = ("gcsfs", "google", "aiohttp")  # their exceptions have no common base
_LONGEST_LINE = 1500  # characters of a message
_REPEAT_SECONDS = 0.5  # until a signal's exception that was lost is raised again
# Wrappers (make, uv) and shells pass on a signal that the process has too: one request that comes twice.
ONE_REQUEST_SECONDS = 1.0


def printable(text: object) -> str:
    """A text on one line as a terminal may show it: control characters, which files' names can hold, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def brief(text: object) -> str:
    """`printable`, without the middle of a text that is longer than anybody reads."""
    line = printable(text)
    return line if len(line) <= _LONGEST_LINE else f"{line[:1000]} ... {line[-400:]}"


def shown(line: object, columns: int | None = None) -> str:
    """A line of output as it is printed: escaped, and on a terminal folded to its width without breaking a word.

    What is folded goes on below the text after a `name  `, or further in than the line began. In a file or a pipe a
    line stays one, so that it can be searched for.

    Args:
      line: text or value to print.
      columns: width to fold at; None for the terminal's.
    """
    line = printable(line)
    if columns is None:
        columns = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else 0
    if not columns or re.search(r"\bpython -m |\biconv |\bjq |\btr '|--workdir", line):  # a command is copied whole
        return line
    name = re.match(r" *\S+( \S+)*  (?=\S)", line)
    indent = name.end() if name else (2 if line[:1] != " " else len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def say(line: object) -> None:
    """Print one line, whatever a file's name or content has put into it."""
    print(shown(line), flush=True)


class _Unbroken(io.FileIO):
    """A descriptor that passes over what cannot be written: nobody reads the pipe, the terminal is gone."""

    broken = False

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not self.broken:
                self.broken = True
                name = {1: "output", 2: "error"}[self.fileno()]
                said = f"note: standard {name} cannot be written ({error.strerror}): the command goes on without it\n"
                with contextlib.suppress(OSError):  # the other one
                    os.write(3 - self.fileno(), said.encode())
            return memoryview(data).nbytes


def keep_output_from_ending_work() -> None:
    """Let a command go on where its output is closed, as `| head -1` does, or full: what it makes is worth more."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:
            raw = _Unbroken(descriptor, "w", closefd=False)
            buffer: Any = raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw)  # PYTHONUNBUFFERED
            made = io.TextIOWrapper(buffer, stream.encoding, stream.errors)
            made.reconfigure(line_buffering=stream.line_buffering, write_through=stream.write_through)
            setattr(sys, name, made)


def run_command(command: Callable[[], int]) -> int:
    """Exit status of a command: its own, or what a message follows.

    Those are 2 after a `UserError`, 75 after a `TryAgainError` or a failure of the cloud's libraries, 128 + the signal
    after SIGTERM, SIGHUP (the terminal is gone) or Ctrl-C.

    SIGTERM and SIGHUP become an exception like Ctrl-C, so that temporary files are removed on the way out; the training
    loop puts its own handlers in the place of theirs. An exception can be lost where it lands: compiled modules pass
    over any while they are imported, and so does Python in `__del__`. So each of the signals starts a timer, and the
    exception is raised again until the command ends, except while one is being handled: nothing disturbs a clean-up but
    another signal a second later, which cuts it short. Python says nothing of one that was lost.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding shall end no run
    received: list[int] = []
    began, ended = 0.0, False

    def interrupt(signum, frame):
        nonlocal began
        same = signum == signal.SIGALRM or (received and time.monotonic() - began < ONE_REQUEST_SECONDS)
        if ended or (same and _interrupt_before(sys.exception())):
            return
        if signum != signal.SIGALRM:
            began = began if received else time.monotonic()
            received.append(signum)
        signal.setitimer(signal.ITIMER_REAL, _REPEAT_SECONDS, _REPEAT_SECONDS)
        raise KeyboardInterrupt(signum)

    def say_what_was_lost(lost):
        if not _interrupt_before(lost.exc_value):
            hook(lost)

    previous, hook = {}, sys.unraisablehook
    sys.unraisablehook = say_what_was_lost
    try:
        try:
            for number in (signal.SIGALRM, *heeded()):
                previous[number] = signal.signal(number, interrupt)
            check_working_folder()
            return command()
        finally:
            ended = True  # a signal now would be a traceback above the last line
    except (Exception, KeyboardInterrupt) as error:
        ended = True
        stopped = _interrupt_before(error)
        if received or stopped:  # an import that lost it may have left a module in pieces
            signum = received[-1] if received else (*(stopped.args if stopped else ()), signal.SIGINT)[0]
            print(f"stopped by signal {signum}; what was saved before is there", file=sys.stderr)
            return 128 + signum
        cloud = is_clouds(error)
        if _is_of_a_variable(error):
            print_error(error, "a variable of the environment: ")
            return 2
        if not cloud and not isinstance(error, UserError):
            raise
        print_error(error, "the bucket failed: " if cloud else "")
        return TRY_AGAIN_STATUS if cloud or isinstance(error, TryAgainError) else 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def check_working_folder() -> None:
    """Refuse to begin in a folder that was removed since the shell went there: no relative path means anything."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the folder of this shell is gone: go into one that is there, and begin again") from error


def heeded() -> list[signal.Signals]:
    """Those of `STOPPING` that nobody has told this process to ignore."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


def of_disk(error: OSError) -> type[UserError]:
    """Kind of error that ends a command: a disk that is full may have room another time."""
    return TryAgainError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError


@contextlib.contextmanager
def writing(what: Any) -> Iterator[None]:
    """Names what is being written where the disk refuses it: a UserError, a TryAgainError where it is full."""
    try:
        yield
    except OSError as error:
        raise of_disk(error)(f"cannot write {printable(what)}: {error.strerror or error}") from error


def print_error(error: BaseException, before: str = "") -> None:
    """One line to stderr; with the variable SCTD_DEBUG set, its traceback above it."""
    if os.environ.get("SCTD_DEBUG"):
        traceback.print_exception(error)
    print(f"error: {before}{brief(error)}", file=sys.stderr)


def is_clouds(error: BaseException) -> bool:
    """Whether a library of the cloud raised it: a bucket has failed, and may answer another time."""
    module = type(error).__module__
    return module.partition(".")[0] in _CLOUD_LIBRARIES and not module.startswith("google.protobuf")  # a file's


def _is_of_a_variable(error: BaseException) -> bool:
    """Whether JAX or matplotlib raised it of one of its own variables, which they read when they are imported."""
    if not isinstance(error, ValueError):
        return False
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return raised_in.endswith(os.path.join("jax", "_src", "config.py")) or str(error).startswith("Key backend: ")


def _interrupt_before(error: BaseException | None) -> KeyboardInterrupt | None:
    """The error, if it is a KeyboardInterrupt, or the one that was being handled when it was raised."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error
