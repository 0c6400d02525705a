import json
import math
import runpy
import sys

import matplotlib.pyplot as plt
import pytest
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sctd_jax import plot
from sctd_jax.arguments import picture
from sctd_jax.errors import UserError, shown
from sctd_jax.probing import drawing
from sctd_jax.train.metrics import Writer, duration, read_metrics


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


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, which stay open until the test ends."""
    found, close = [], plt.close
    monkeypatch.setattr(plt, "close", found.append)
    yield found
    close("all")


def pretraining(workdir, end=2.0):
    """Ten evaluations, of which the first one is that of random weights; the loss falls to `end`."""
    workdir.parent.mkdir(exist_ok=True)
    points = [record(s, s * 2.0, **{"eval/loss": end + 8 * math.exp(-s / 100)}) for s in range(0, 1000, 100)]
    lines = [*points, *(record(s, s * 2.0, **{"train/loss": p["eval/loss"]}) for s, p in enumerate(points))]
    write(workdir, sorted(lines, key=lambda line: line["step"]))
    return str(workdir)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_picture_shows_small_differences_and_hides_nothing_behind_its_legend(tmp_path, capsys, figures):
    runs = [pretraining(tmp_path / "x" / "_a$b$"), pretraining(tmp_path / "y" / "_a$b$", 2.05)]
    out = tmp_path / "x.png"
    assert plot.main([*runs, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert " ".join(said[:-1]).endswith("not shown; --ymax inf shows all") and said[-1] == str(out)
    (figure,) = figures
    left, right = figure.axes
    low, high = left.get_ylim()
    assert low < 2 and (high - low) / 20 < 0.05  # of an axis of 8 the difference would be a hair
    assert (left.get_ylabel(), right.get_xlabel().split()[0]) == ("loss (nats per predicted token)", "minutes")
    # Runs that end alike are told apart, and no sign in a name means anything.
    assert labels(figure) == ["x/_a$b$", "y/_a$b$", "held out, full model", "training, running mean"]
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().y1 < min(axis.get_tightbbox().y0 for axis in figure.axes)
    plot.draw(runs, out, ymax=9)
    assert figures[1].axes[0].get_ylim()[1] == 9
    assert plot.draw(runs, out, ymax=math.inf) == [] and figures[2].axes[0].get_ylim()[1] > 9.9
    for arguments, message in (
        ((runs, out, 1.0), "--ymax 1 lies below all losses; the lowest is 2.001"),
        (([runs[0], runs[0] + "/."], out), "is named twice"),
    ):
        with pytest.raises(UserError, match=message):
            plot.draw(*arguments)


def test_word_frequencies_are_a_line_where_they_are_known(tmp_path, figures):
    runs = [pretraining(tmp_path / name) for name in ("old", "new", "again")]
    for name in ("new", "again"):
        path = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_again = [line | ({"eval/unigram_loss": 2.5} if "eval/loss" in line else {}) for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in write_again))
    plot.draw(runs, tmp_path / "x.png")
    dotted = [line for axis in figures[0].axes for line in axis.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in dotted] == [[2.5, 2.5]] * 2  # one in each half of the picture
    assert labels(figures[0])[-1] == "word frequencies alone: 2.500"
    plot.draw(runs[:1], tmp_path / "x.png")
    assert not any(line.get_linestyle() == ":" for axis in figures[1].axes for line in axis.lines)
    assert len(labels(figures[1])) == 3


def test_a_fine_tuning_shows_its_tasks_loss_and_score(tmp_path, figures):
    lines = [record(s, s * 1.0, **{"train/loss": 0.7 - s / 100}) for s in range(1, 9)]
    lines += [record(s, s * 1.0, **{"eval/accuracy": s / 10, "eval/f1": 0.5, "eval/score": s / 20}) for s in (4, 8)]
    for name in ("rte-1", "rte-2"):
        write(tmp_path / name, lines)
    tuned = [str(tmp_path / name) for name in ("rte-1", "rte-2")]
    plot.draw(tuned, tmp_path / "x.png")
    loss, score = figures[0].axes
    assert loss.get_ylabel() == "training loss of the task, running mean"
    assert (score.get_xlabel(), score.get_ylabel()) == ("step", "score on dev (accuracy, f1)")
    assert score.lines[0].get_xydata().tolist() == [[4, 0.2], [8, 0.4]]
    assert labels(figures[0]) == ["rte-1", "rte-2"]
    with pytest.raises(UserError, match="rte-1: fine-tuned, the others pretrained"):
        plot.draw([pretraining(tmp_path / "mlm"), tuned[0]], tmp_path / "x.png")


def test_curves_are_smoothed_only_where_they_are_long():
    short = [(s, 0.0, float(s % 2)) for s in range(60)]
    assert plot.smooth(short) == short
    assert {round(v, 1) for *_, v in plot.smooth([(s, 0.0, float(s % 2)) for s in range(600)])[9:-9]} == {0.5}


def test_forty_models_are_told_apart_and_long_names_are_whole():
    looks = [tuple(plot.look(number).items()) for number in range(40)]
    assert len(set(looks)) == 40
    figure, axis = plt.subplots(figsize=(11, 4.2), layout="constrained")
    named = [f"{'a-long-folder/' * 9}{number}" for number in range(10)]
    plot.put_legend(figure, {name: Line2D([], []) for name in named})
    figure.canvas.draw()
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert [label.replace("\n", "") for label in labels(figure)] == named
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and legend.y1 < axis.get_tightbbox().y0
    assert axis.get_window_extent().height > 200
    plt.close(figure)


def test_probes_count_layers_from_0_like_the_config(figures):
    scores = [0.5, 0.7, 0.8, 0.9, 0.6]
    probed = {"model": "a", "cls": {"score": scores}, "mean": {"score": scores}}
    settings = {"settings": {"task": "sst2"}, "metrics": ["accuracy"], "majority": 0.5}
    drawing.layers({"models": [probed], **settings})
    (axis,) = figures[0].axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["emb", "0", "1", "2", "3"]
    assert axis.lines[0].get_xydata()[0].tolist() == [-1, 0.5]
    assert labels(figures[0]) == ["a", "[CLS]", "mean", "majority"]
    point = {"step": 3, "pppl": 20.5, "bits_per_character": 1.25}
    drawing.perplexity({"models": [{"model": "b", "points": [point]}], "settings": {"every_checkpoint": False}})
    assert figures[1].axes[0].texts[0].get_text() == "20.5"


def test_lines_of_output_have_100_columns_at_most():
    line = f"note: {'word ' * 60}{'a-path/' * 20}x and more"
    lines = shown(line, 100).splitlines()
    assert " ".join(map(str.strip, lines)) == line
    assert all(len(part) <= 100 or part.strip().startswith("a-path/") for part in lines)
    assert shown("  short", 100) == "  short"
    assert shown(line) == line  # in a pipe


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_file_of_the_pictures_default_name_that_is_none_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss.png").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        plot.main(["run"])
    assert "loss.png is there, and is no picture" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", sorted(FigureCanvasBase.filetypes.keys() - {"pgf"}))  # that wants a LaTeX
def test_a_picture_of_ours_may_be_made_anew(suffix, tmp_path):
    path = tmp_path / f"loss.{suffix}"
    Figure(figsize=(1, 1)).savefig(path)
    assert picture(str(path)) == path


def test_a_picture_that_cannot_be_written_is_named(tmp_path, capsys):
    write(tmp_path / "run", [record(1, 10.0, **{"train/loss": 1.0})])
    out = tmp_path / "nowhere" / "loss.png"
    assert plot.main([str(tmp_path / "run"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {out}: ")
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


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plot", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(plot.__file__, run_name="__main__")
    assert "runs/a runs/b" in plot.__doc__ and "--ymax" in capsys.readouterr().out
