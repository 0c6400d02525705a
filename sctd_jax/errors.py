"""What ends a command: the exception that is meant for the person at the terminal. A leaf: anyone may import it."""

import signal
import sys
import textwrap
from collections.abc import Callable


class UserError(Exception):
    """Bad config, data, checkpoint or topology.

    The message names the field or file, what was found and what is expected; the commands print it
    without a traceback and exit with status 2.
    """


class TryAgainError(UserError):
    """Nothing is wrong with the command: a host, a bucket or a disk failed it, and it may work another time."""


TRY_AGAIN_STATUS = 75  # sysexits.h: a temporary failure; launch/babysit.sh runs the command again on it
_CLOUD_LIBRARIES = ("gcsfs", "google", "aiohttp")  # whose exceptions have no common base


def printable(text: object) -> str:
    """A text on one line as a terminal may show it: control characters, which files' names can hold, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def fold(line: str, indent: int = 2) -> list[str]:
    """A line of output as lines of at most 100 columns, the later ones indented; no word (a path) is broken."""
    return textwrap.wrap(line, 100, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def run_command(command: Callable[[], int]) -> int:
    """Exit status of a command: its own, or what a message follows.

    Those are 2 after a `UserError`, 75 after a `TryAgainError` or a failure of the cloud's libraries, 128 + the signal
    after SIGTERM or Ctrl-C.

    SIGTERM becomes an exception like Ctrl-C, so that temporary files are removed on the way out; the training
    loop puts its own handlers in the place of both.
    """
    received = [signal.SIGINT]

    def interrupt(signum, frame):
        received.append(signum)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRY_AGAIN_STATUS if isinstance(error, TryAgainError) else 2
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLOUD_LIBRARIES:
            raise
        print(f"error: the bucket failed: {error}", file=sys.stderr)
        return TRY_AGAIN_STATUS
    except KeyboardInterrupt:
        print(f"stopped by signal {received[-1]}; what was saved before is there", file=sys.stderr)
        return 128 + received[-1]
    finally:
        signal.signal(signal.SIGTERM, previous)
