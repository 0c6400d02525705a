"""The arena: its table, cells that are killed or shared, and its report."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from sctd_jax import arena, recipes, storage
from sctd_jax.comparison import report, run
from sctd_jax.comparison.table import read_table
from sctd_jax.errors import DivergedError, UserError
from sctd_jax.train.workdir import write_config
from tests import helpers

RECIPE = "tests/small_arena.py"


def values(rows="rows", **changes):
    found = recipes.load(f"{RECIPE}:{rows}").to_dict()
    return found | changes


def command(rows, folder, *more, recipe=RECIPE):
    return helpers.call(arena.main, f"--config={recipe}:{rows}", f"--workdir={folder}", *more)


def test_cells_have_equal_reference_time_and_come_in_order():
    table = read_table(values())
    assert [cell.name for cell in table.cells] == [
        "full-1-0", "drop-1-0", "random-1-0", "drop-1-1", "random-1-1", "drop-0.5-0", "random-0.5-0", "drop-0.5-1",
        "random-0.5-1",
    ]  # fmt: skip
    cells = {cell.name: cell for cell in table.cells}
    assert cells["full-1-0"].config.train.steps == 300
    assert cells["drop-1-1"].config.train.steps == 400  # 300 / 0.75
    assert cells["random-0.5-0"].config.train.steps == 200
    assert cells["random-0.5-0"].config.dropping.method == "random"
    train = cells["drop-1-1"].config.train
    assert (train.seed, train.eval_every, train.checkpoint_every) == (1, 134, 134)  # three evaluations
    for name, cell in cells.items():  # nothing else is another for another method
        fields = [cell.config.model, cell.config.masking, cell.config.data, cell.config.optimizer]
        assert fields == [getattr(cells["full-1-0"].config, part) for part in ("model", "masking", "data", "optimizer")]
        assert name == f"{cell.method}-{cell.budget:g}-{cell.seed}"


def test_stages_of_a_method_grow_with_its_steps_and_the_warm_up_does_not():
    staged = {"dropping": {"method": "drop", "keep_schedule": "0:16,150:24", "full_steps_last": 30}}
    table = read_table(values(methods={"full": {}, "drop": staged, "random": {}}))
    cell = next(cell for cell in table.cells if cell.name == "drop-1-0")
    assert cell.config.dropping.keep_schedule == "0:16,200:24"
    assert cell.config.dropping.full_steps_last == 40
    assert cell.config.optimizer.warmup_steps == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"step_time": {"full": 1.0, "drop": 0.75}}, "method random has no step_time .* benchmarks/train_step.py"),
        ({"step_time": {"full": 2.0}}, "step_time of the baseline full is 2.0, expected 1"),
        ({"rounds": ({"methods": ("full", "dorp"), "budgets": (1,), "seeds": (0,)},)}, "method dorp is not among"),
        ({"rounds": ({"methods": ("full",), "budgets": (75,), "seeds": (0,)},)}, "a budget is a share .* found 75"),
        ({"rounds": ({"methods": ("full",), "budgets": (1,)},)}, "round 1 must have methods, budgets and seeds"),
        ({"rounds": ()}, "have no cell"),
        ({"methods": {"full": {"train": {"stepz": 1}}}}, "method full: the run has no train.stepz"),
        ({"evaluation": 3}, "a recipe of an arena has the fields .*; look at evaluation"),
        ({"methods": {"full": {"optimizer": {"schedule": "wsd"}}}}, "never falls"),
        ({"methods": {"full": {"masking": {"rate": 0.4}}}}, "masking.rate is 0.4 and 0.15 in the run, but all are"),
        ({"methods": {"full": {"data": {"rows": "others"}}}}, "full: data.rows is 'others' and 'rows' in the run"),
    ],
)
def test_a_table_that_compares_nothing_is_refused_before_its_first_cell(changes, match):
    with pytest.raises(UserError, match=match):
        read_table(values(**changes))


@pytest.mark.slow
def test_a_cell_that_is_killed_goes_on_and_one_that_another_process_is_at_is_passed_over(rows, tmp_path):
    folder, alone = tmp_path / "cells", tmp_path / "alone"
    first = subprocess.Popen(
        [sys.executable, "-m", "sctd_jax.arena", f"--config={RECIPE}:{rows}", f"--workdir={folder}"],
        cwd=helpers.ROOT, env=helpers.environment(), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (folder / "full-1-0" / "checkpoints" / "100").exists():
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)
        assert not (folder / "full-1-0" / run.RESULT_FILE).exists()
        second = command(rows, folder, "--next")
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 0, second.stderr
    assert "cell full-1-0: another process is at it" in second.stdout
    assert "1 of 9 cells are finished" in second.stdout
    assert (folder / "drop-1-0" / run.RESULT_FILE).exists()

    third = command(rows, folder, "--next")
    assert "resuming at step" in third.stdout
    assert "2 of 9 cells are finished" in third.stdout
    command(rows, alone, "--next")
    mine, uninterrupted = (json.loads((one / "full-1-0" / run.RESULT_FILE).read_text()) for one in (folder, alone))
    assert mine == uninterrupted
    assert [point[0] for point in mine["curve"]] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    judged = mine["final"]["eval/loss"]
    assert judged != mine["curve"][-1][1]  # on more rows than those of the curve

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*")}
    reported = command(rows, folder, "--report")  # of a table that is not finished
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*")} == before
    assert f"| full | 1 | 1 | {judged:.3f}" in reported.stdout
    again = helpers.call(
        arena.main, "--report", f"--cells={folder / 'report' / 'cells.jsonl'}", f"--out={tmp_path / 'again'}"
    )
    assert again.returncode == 0
    for name in ("report.md", "report.json", "cells.jsonl"):
        assert (tmp_path / "again" / name).read_text() == (folder / "report" / name).read_text()
    for name in ("curves.png", "budgets.png"):
        assert (folder / "report" / name).read_bytes().startswith(b"\x89PNG")

    other = tmp_path / "other.py"
    source = (helpers.ROOT / RECIPE).read_text()
    other.write_text(source.replace("run.mesh.data = 1", "run.mesh.data = 1; run.optimizer.learning_rate = 0.5"))
    refused = command(rows, folder, recipe=other)
    assert (refused.returncode, "optimizer.learning_rate" in refused.stderr) == (2, True)
    assert "was run by another table" in refused.stderr
    other.write_text(source.replace("config.judge_rows = 3, 30", "config.judge_rows = 3, 20"))
    refused = command(rows, folder, recipe=other)
    assert (refused.returncode, "was judged on 30 rows, found judge_rows 20 now" in refused.stderr) == (2, True)
    (tmp_path / "times.json").write_text(json.dumps({"step_time": {"full": 1.0, "drop": 0.7501, "random": 0.75}}))
    refused = command(rows, folder, f"--step-time={tmp_path / 'times.json'}")
    assert (refused.returncode, "run with step_time 0.75, found 0.7501 now" in refused.stderr) == (2, True)
    taken = folder / "full-1-0" / run.RESULT_FILE
    content = json.loads(taken.read_text())
    for change, status in ((content["rows"], 0), ({"train": {}}, 2)):  # of another machine: a result, and nothing else
        shutil.rmtree(taken.parent)
        taken.parent.mkdir()
        taken.write_text(json.dumps(content | {"rows": change}))
        refused = command(rows, folder, "--report")
        assert (refused.returncode, "were trained on different rows" in refused.stderr) == (status, status == 2)


def test_a_cell_that_diverges_is_a_result(rows, tmp_path, monkeypatch):
    def diverge(config, place, log):
        place.mkdir(parents=True)
        raise DivergedError("20 steps in a row")

    monkeypatch.setattr(run, "train_and_evaluate", diverge)
    table, lines = read_table(values(rows)), []
    assert run.run_cells(table, storage.as_path(tmp_path), lines.append, only_next=True) is None
    assert "warning: cell full-1-0: 20 steps in a row" in lines
    (result,) = run.read_results(table, storage.as_path(tmp_path))
    assert result["final"] == {"diverged": True}
    content = report.summarize([result], "full")
    assert content["rows"][0]["diverged"] == 1
    assert content["why_not"] == "full has no finished cell of budget 1"


def test_one_process_judges_a_cell(tmp_path, monkeypatch):
    """Training has ended and gives its lease back; a second process that comes then passes the cell over."""
    table, folder, judged, lines = read_table(values()), storage.as_path(tmp_path), [], []

    def evaluate(config, place, log):
        judged.append(config.train.eval_rows)
        if len(judged) == 1:
            run.run_cells(dataclasses.replace(table, cells=table.cells[:1]), folder, lines.append)
        return {"eval/loss": 3.0}

    def train(config, place, log):
        place.mkdir(parents=True, exist_ok=True)
        return types.SimpleNamespace(stopped_by=None)

    monkeypatch.setattr(run, "train_and_evaluate", train)
    monkeypatch.setattr(run, "evaluate_workdir", evaluate)
    run.run_cells(table, folder, lines.append, only_next=True)
    assert judged == [30]
    assert "cell full-1-0: another process is at it" in lines
    assert (tmp_path / "full-1-0" / run.RESULT_FILE).exists()


def test_cells_that_another_machine_has_finished_are_taken_and_checked(tmp_path):
    ours = [
        cell("full", 1.0, 0, 3.0) | {"steps": 300},
        cell("drop", 1.0, 0, 2.9) | {"step_time": 0.75, "steps": 400, "judge_rows": 30, "downstream": {"boolq": 0.7}},
        cell("sctd", 1.0, 0, 2.8),
    ]

    def take(results, folder=tmp_path / "cells"):
        (tmp_path / "cells.jsonl").write_text("".join(json.dumps(one) + "\n" for one in results))
        return command("rows", folder, "--report", f"--cells={tmp_path / 'cells.jsonl'}")

    for changed, said in (
        ({"steps": 299}, "the cell drop-1-0 was run for 299 steps, found 400 now"),
        ({"step_time": 0.7}, "the cell drop-1-0 was run with step_time 0.7, found 0.75 now"),
        ({"judge_rows": 20}, "the cell drop-1-0 was judged on 20 rows, found judge_rows 30 now"),
    ):
        refused = take([ours[0], ours[1] | changed])
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
        assert not (tmp_path / "cells").exists()
    for taken in (2, 0):
        done = take(ours)
        assert done.returncode == 0, done.stderr
        assert f"{taken} of 3 cells of --cells are taken as finished; 1 are of no cell of the table" in done.stdout
        assert "2 of 9 cells are finished" in done.stdout
    written = [json.loads(line) for line in (tmp_path / "cells" / "report" / "cells.jsonl").read_text().splitlines()]
    assert [one["method"] for one in written] == ["full", "drop"]
    assert written[1]["downstream"] == {"boolq": 0.7}
    (tmp_path / "cells" / "drop-1-0" / run.RESULT_FILE).write_text(json.dumps(ours[1] | {"steps": 7}))
    refused = command("rows", tmp_path / "cells", "--report")  # though nothing else of its run is there
    assert (refused.returncode, "was run for 7 steps" in refused.stderr) == (2, True)
    (drop,) = (one for one in read_table(values()).cells if one.name == "drop-1-0")
    place = storage.as_path(tmp_path / "begun" / drop.name)
    place.mkdir(parents=True)
    write_config(place, drop.config)
    refused = take(ours, tmp_path / "begun")
    assert (refused.returncode, "has drop-1-0, which" in refused.stderr) == (2, True), refused.stderr


def cell(method, budget, seed, loss, below=2.0):
    final = {"eval/loss": loss, "eval/below_unigram": below}
    curve = [[0.0, 7.0, -1.0], [budget, loss, below]]
    return {"method": method, "budget": budget, "seed": seed, "step_time": 1.0, "steps": 1, "final": final,
            "curve": curve}  # fmt: skip


FULL = [cell("full", 1.0, seed, loss) for seed, loss in enumerate((3.0, 3.1, 3.2))]


def test_differences_are_of_the_same_seeds_and_doubted_within_their_range():
    better = [cell("drop", 1.0, seed, loss) for seed, loss in enumerate((2.6, 2.7, 2.8))]
    mixed = [cell("sctd", 1.0, seed, loss) for seed, loss in enumerate((2.9, 3.0, 3.3))]
    single = [cell("random", 1.0, 0, 2.0)]
    content = report.summarize([*FULL, *better, *mixed, *single], "full")
    rows = {row["method"]: row for row in content["rows"]}
    assert rows["full"]["loss"] == pytest.approx(3.1) and rows["full"]["difference"] is None
    assert (rows["drop"]["difference"], rows["drop"]["within_spread"]) == (pytest.approx(-0.4), False)
    assert (rows["sctd"]["difference"], rows["sctd"]["within_spread"]) == (pytest.approx(-1 / 30), True)
    assert rows["random"]["within_spread"]  # one seed shows nothing
    text = report.markdown(content)
    assert "| drop | 1 | 3 | 2.700 [2.600 to 2.800] | 2.00 | -0.400 |" in text
    assert "-0.033 (within the seeds' spread)" in text


def test_the_time_saved_is_read_between_finished_runs():
    losses = {1.0: 2.9, 0.75: 3.0, 0.5: 3.2}  # full's 3.1 lies half-way between the last two
    halves = [cell("drop", budget, 0, loss) for budget, loss in losses.items()]
    always = [cell("sctd", budget, 0, 3.05) for budget in losses]
    never = [cell("random", budget, 0, 3.4) for budget in losses]
    content = report.summarize([*FULL, *halves, *always, *never], "full")
    assert content["saved"] == {
        "drop": {"share": pytest.approx(0.375), "at_least": False},
        "sctd": {"share": 0.5, "at_least": True},
    }
    text = report.markdown(content)
    assert "| drop | 0.62 | 38% saved (within the seeds' spread at 1) |" in text  # of one seed
    assert "| sctd | at most 0.50 | at least 50% saved" in text
    assert "| random | not within its budgets | |" in text
    slower = [cell("drop", budget, seed, loss) for budget, loss in {1.0: 3.5, 1.5: 2.7}.items() for seed in range(3)]
    assert "| drop | 1.25 | 25% lost |" in report.markdown(report.summarize([*FULL, *slower], "full"))


def test_what_else_was_measured_has_columns_of_its_own(tmp_path):
    results = [cell("full", 1.0, 0, 3.0), cell("drop", 1.0, 0, 2.9), cell("drop", 1.0, 1, 2.9)]
    for one, cosine in zip(results[1:], (0.9, 0.8), strict=True):
        one["final"]["eval/cosine_global"] = cosine
    table = read_table(values())
    folder = storage.as_path(tmp_path)
    for one in results:
        place = folder / f"{one['method']}-1-{one['seed']}"
        place.mkdir()
        (place / run.RESULT_FILE).write_text(json.dumps(one))
    (folder / "downstream" / "boolq").mkdir(parents=True)
    tasks = [{"checkpoint": f"drop-1-{seed}", "task": "classification", "median": 0.6 + seed / 10} for seed in (0, 1)]
    (folder / "downstream" / "boolq" / "report.json").write_text(json.dumps({"tasks": tasks}))
    (folder / "probes").mkdir()
    probed = {"model": "full-1-0", "mean": {"score": [0.1, 0.7, 0.8]}}
    (folder / "probes" / "layers.json").write_text(json.dumps({"settings": {"task": "sst2"}, "models": [probed]}))
    text = report.markdown(report.summarize(run.read_results(table, folder), "full"))
    assert "| against full | probe of sst2 | drift | fine-tuned on boolq |" in text
    assert "| full | 1 | 1 | 3.000 [3.000 to 3.000] | 2.00 |  | 0.750 |  |  |" in text
    assert "| -0.100 (within the seeds' spread) |  | 0.150 | 0.650 |" in text


def test_nothing_is_ranked_on_the_plateau():
    plateau = [cell("full", 1.0, 0, 5.6, 0.1), cell("drop", 1.0, 0, 5.5, 0.2), cell("drop", 0.5, 0, 5.5, 0.2)]
    content = report.summarize(plateau, "full")
    assert (content["ranked"], content["saved"]) == (False, {})
    text = report.markdown(content)
    assert "full ends 0.10 nats below word frequencies, less than 1: on that plateau all methods look alike" in text
    assert "not ranked" in text and "-0.100" not in text
    unknown = [cell("full", 1.0, 0, 3.0, None)]
    assert "is not known" in report.summarize(unknown, "full")["why_not"]


def test_a_recipe_of_an_arena_is_none_of_main():
    ((status, _, stderr),) = helpers.answers([["--config=configs/arena/small.py:rows"]])
    assert status == 2
    assert "small.py:rows is a recipe of an arena: python -m sctd_jax.arena runs it" in stderr


def test_the_arena_for_two_cores_has_the_methods_of_the_spec_first():
    values = recipes.load("configs/arena/small.py:rows").to_dict()
    table = read_table(values)
    recorded = json.loads((helpers.ROOT / "docs" / "study" / "step_time.json").read_text())["step_time"]
    assert values["step_time"] == recorded
    first = table.cells[:15]
    assert {cell.method for cell in first} == {"full", "drop", "sctd", "random", "random_ltd"}
    assert {(cell.budget, cell.seed) for cell in first} == {(1.0, 0), (1.0, 1), (1.0, 2)}
    assert all(cell.config.masking.rate == 0.15 for cell in table.cells)


def test_what_the_command_lacks_is_said(capsys, tmp_path):
    for arguments, said in (
        ([], "--config and --workdir are expected"),
        (["--cells=x"], "--config and --workdir are expected, or --report and --out"),
        (["--cells=x", "--report"], "or --report and --out"),
        (["--cells=x", "--report", "--out=y", "--next"], "without --config, --step-time and --next, or with --workdir"),
        (["--cells=x", "--config=y", "--workdir=z", "--baseline=full"], "--baseline is for a report of --cells alone"),
    ):
        with pytest.raises(SystemExit):
            arena.main(arguments)
        assert said in capsys.readouterr().err
    empty = command("rows", tmp_path, "--report")
    assert (empty.returncode, "no cell is finished" in empty.stderr) == (2, True)
