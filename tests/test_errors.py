import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from sctd_jax import errors, storage
from sctd_jax.errors import TRY_AGAIN_STATUS, TryAgainError, UserError, run_command, say, shown
from sctd_jax.train.signals import stop_requests
from tests import helpers

FORGED = "tensor x\nerror: forged\x1b[31m\r\u2028\udcff unknown"


def test_a_working_folder_that_is_gone_ends_a_command_before_it_begins(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(lambda: pytest.fail("it began")) == 2
    assert (
        capsys.readouterr().err
        == "error: the folder of this shell is gone: go into one that is there, and begin again\n"
    )


@pytest.mark.parametrize(
    ("variable", "said"), [("JAX_NUM_CPU_DEVICES", "jax_num_cpu_devices"), ("MPLBACKEND", "backend")]
)
def test_a_variable_that_a_library_cannot_read_is_one_line(variable, said):
    done = subprocess.run(
        [sys.executable, "-m", "sctd_jax.report", "run"],
        env=helpers.environment() | {variable: "banana"}, cwd=helpers.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(rf"error: a variable of the environment: .*{said}.*\n", done.stderr), done.stderr


def test_a_locale_without_utf8_is_told_where_a_name_cannot_be_read(monkeypatch):
    with pytest.raises(UserError, match=r"/x\udcc3 is no UTF-8, .*: rename it$"):
        storage.as_path("/x\udcc3")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match="as ascii here, so set PYTHONUTF8=1"):
        storage.as_path("/x\udcc3")


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


class _Closing:
    """An object whose end is interrupted: Python passes over what `__del__` raises."""

    def __init__(self, signum):
        self.signum = signum

    def __del__(self):
        os.kill(os.getpid(), self.signum)
        time.sleep(0)


def _lost_in_a_bare_except(signum):
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signum)
        time.sleep(10)


def _lost_twice(signum):
    _lost_in_a_bare_except(signum)
    with contextlib.suppress(BaseException):
        time.sleep(10)


@pytest.mark.parametrize("signum", errors.STOPPING)
@pytest.mark.parametrize("lose", [_Closing, _lost_in_a_bare_except, _lost_twice])
def test_a_signal_whose_exception_is_lost_ends_the_command_all_the_same(capsys, monkeypatch, signum, lose):
    monkeypatch.setattr(errors, "_REPEAT_SECONDS", 0.01)
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
    kept = [signal.getsignal(number) for number in (*errors.STOPPING, signal.SIGALRM)]

    def command():
        lose(signum)
        time.sleep(5)
        return 0

    assert run_command(command) == 128 + signum
    assert capsys.readouterr().err == f"stopped by signal {signum}; what was saved before is there\n"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert [signal.getsignal(number) for number in (*errors.STOPPING, signal.SIGALRM)] == kept


def test_a_repeated_signal_disturbs_no_clean_up_and_no_error_on_the_way_hides_it():
    done = []

    def command():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            with contextlib.suppress(ValueError):
                signal.raise_signal(signal.SIGALRM)
                raise ValueError from None
            done.append("cleaned")
            raise ImportError("a module that names every failure so") from interrupt

    assert run_command(command) == 128 + signal.SIGTERM
    assert done == ["cleaned"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_what_a_shell_or_nohup_had_ignored_stays_ignored(signum):
    def command():
        signal.raise_signal(signum)
        with stop_requests() as stop:
            signal.raise_signal(signum)
        return 7 if stop.signum is None else stop.signum

    previous = signal.signal(signum, signal.SIG_IGN)
    try:
        assert run_command(command) == 7
    finally:
        signal.signal(signum, previous)


@pytest.mark.parametrize("signum", errors.STOPPING)
def test_training_is_asked_to_stop_by_the_first_signal_and_interrupted_by_one_that_comes_later(signum, monkeypatch):
    """At once the second is the same request, which a wrapper has passed on too."""
    with stop_requests() as stop:
        signal.raise_signal(signum)
        signal.raise_signal(signum)
        assert stop.signum == signum
        monkeypatch.setattr(errors, "ONE_REQUEST_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)


@pytest.mark.parametrize("signum", errors.STOPPING)
def test_a_second_signal_disturbs_a_clean_up_only_later_and_none_the_last_line(signum, capsys, monkeypatch):
    done = []

    def command():
        try:
            signal.raise_signal(signum)
        finally:
            signal.raise_signal(signum)
            done.append("the same request")
            monkeypatch.setattr(errors, "ONE_REQUEST_SECONDS", 0)
            signal.raise_signal(signum)
            done.append("not reached")

    monkeypatch.setattr(errors, "print", lambda *a, **k: (signal.raise_signal(signum), print(*a, **k)), raising=False)
    assert run_command(command) == 128 + signum
    assert done == ["the same request"]
    assert capsys.readouterr().err == f"stopped by signal {signum}; what was saved before is there\n"


@pytest.mark.parametrize("signum", errors.STOPPING)
def test_a_second_signal_to_a_training_that_is_lost_is_raised_again_and_told_by_its_number(signum, capsys, monkeypatch):
    monkeypatch.setattr(errors, "_REPEAT_SECONDS", 0.01)
    monkeypatch.setattr(errors, "ONE_REQUEST_SECONDS", 0)

    def command():
        with stop_requests():
            signal.raise_signal(signum)
            _Closing(signum)  # Python would print what it passes over
            time.sleep(5)

    assert run_command(command) == 128 + signum
    assert capsys.readouterr().err == f"stopped by signal {signum}; what was saved before is there\n"


@pytest.mark.parametrize("signum", errors.STOPPING)
def test_a_signal_while_a_command_imports_its_modules_leaves_no_traceback(signum):
    """The package is imported, its `main` is not: the modules that it reads stand still here."""
    code = "import os, sys; sys.orig_argv = ['python', '-m', 'sctd_jax.main']; import sctd_jax; "
    code += f"os.kill(os.getpid(), {int(signum)}); import time; time.sleep(9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=helpers.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signum, "")


def test_an_error_after_a_lost_signal_is_its_end(capsys):
    """An import that passed over the exception may leave a module in pieces, which another line then finds."""

    def command():
        _lost_in_a_bare_except(signal.SIGTERM)
        raise UserError("a module lacks a name")

    assert run_command(command) == 128 + signal.SIGTERM
    assert "stopped by signal 15" in capsys.readouterr().err
