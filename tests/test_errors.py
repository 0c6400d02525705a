import pytest

from sctd_jax.errors import TRY_AGAIN_STATUS, TryAgainError, UserError, run_command, say

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
