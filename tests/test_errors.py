import io
import sys

import pytest

from sctd_jax.errors import TRY_AGAIN_STATUS, TryAgainError, UserError, run_command, say, shown

FORGED = "tensor x\nerror: forged\x1b[31m\r\u2028\udcff unknown"


@pytest.mark.parametrize(("error", "status"), [(UserError, 2), (TryAgainError, TRY_AGAIN_STATUS)])
def test_a_message_is_one_line_whatever_a_files_name_holds(capsys, error, status):
    def command():
        say(FORGED)
        raise error(FORGED)

    assert run_command(command) == status
    printed = capsys.readouterr()
    escaped = r"tensor x\nerror: forged\x1b[31m\r\u2028\udcff unknown"
    assert (printed.out, printed.err) == (f"{escaped}\n", f"error: {escaped}\n")


def test_a_terminal_of_another_encoding_ends_no_command_and_a_command_to_copy_is_not_folded(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_command(lambda: say("д") or 0) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u0434\n"
    command = f"curves: python -m sctd_jax.plot {'x ' * 99}y"
    assert shown(command, 100) == command
