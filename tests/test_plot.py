import json

from sctd_jax import plot
from sctd_jax.train.metrics import Writer, duration, read_metrics
from tests import helpers


def write(workdir, records):
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def record(step, seconds, **values):
    return {"step": step, "seconds": seconds, **values}


def test_a_step_that_was_repeated_after_a_kill_counts_once():
    lines = [
        record(1, 1.0, a=5.0),
        record(2, 2.0, a=4.0),
        record(3, 3.0, a=3.0),
        record(2, 2.5, a=4.5),
        record(3, 3.5, b=1.0),
    ]
    assert plot.curve(lines, "a") == [(1, 1.0, 5.0), (2, 2.5, 4.5), (3, 3.0, 3.0)]


def test_the_picture_is_a_png(tmp_path, capsys):
    for name in ("a", "b"):
        points = [record(s, s * 2.0, **{"train/loss": 9.0 - s}) for s in range(5)]
        write(tmp_path / name, [*points, record(0, 0.0, **{"eval/loss": 9.0}), record(4, 8.0, **{"eval/loss": 5.0})])
    out = tmp_path / "x.png"
    assert plot.main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert str(out) in capsys.readouterr().out


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_named(tmp_path, capsys):
    write(tmp_path / "run", [record(1, 10.0, **{"train/loss": 1.0})])
    for out in ("loss.xyz", "nowhere/loss.png"):
        assert plot.main([str(tmp_path / "run"), "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: cannot write {tmp_path / out}: ")
        assert error.count("\n") == 1


def test_the_writer_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path):
    write(tmp_path / "run", [record(1, 10.0, a=1.0), record(2, 20.0, a=2.0)])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "sec')
    writer = Writer(tmp_path / "run", start=1)
    writer.write(2, {"a": 3.0})
    writer.close()
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["step"], last["a"]) == (2, 3.0)
    assert 10.0 <= last["seconds"] < 20.0  # time goes on from the restored step
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_durations():
    assert [duration(s) for s in (5, 65, 3600, 90061)] == ["00:05", "01:05", "01:00:00", "1d 01:01:01"]


def test_the_module_is_a_command():
    assert "runs/a runs/b" in plot.__doc__
    assert helpers.run_module("sctd_jax.plot", "--help").returncode == 0
