"""Results of a sweep as JSON, markdown and a picture."""

import io
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from etils import epath
from matplotlib.lines import Line2D

from sctd_jax.errors import writing
from sctd_jax.plot import look, save
from sctd_jax.storage import write
from sctd_jax.tasks.table import TASKS

REPORT_FILE, _TABLE_FILE, _PICTURE_FILE = FILES = ("report.json", "report.md", "report.png")
_BENCHMARKS = {"glue": "GLUE", "superglue": "SuperGLUE"}


def summarize(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Learning rate with the highest median score over its seeds, for each checkpoint and task.

    Returns:
      Rows with `checkpoint`, `task`, `learning_rate`, `median`, `lowest`, `highest`, `seeds` (how many), `rates`: the
      median of every rate, and `unfinished`: how many rates are left out because they have fewer seeds. Scores as the
      tasks define them: several metrics are averaged.
    """
    rows = []
    for (checkpoint, task), group in itertools.groupby(results, key=lambda r: (r["checkpoint"], r["task"])):
        by_rate: dict[float, list[float]] = {}
        for result in group:
            by_rate.setdefault(result["learning_rate"], []).append(result["eval/score"])
        # A rate with fewer seeds than the others is unfinished, and its median no match for theirs.
        most = max(map(len, by_rate.values()))
        medians = {rate: statistics.median(scores) for rate, scores in by_rate.items() if len(scores) == most}
        best = max(medians, key=medians.get)
        rows.append(
            {
                "checkpoint": checkpoint, "task": task, "learning_rate": best, "median": medians[best],
                "lowest": min(by_rate[best]), "highest": max(by_rate[best]), "seeds": most,
                "rates": {f"{rate:g}": median for rate, median in medians.items()},
                "unfinished": len(by_rate) - len(medians),
            }
        )  # fmt: skip
    return rows


def averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The plain mean over a benchmark's tasks, as GLUE and SuperGLUE define it, for each checkpoint.

    Returns:
      Rows with `checkpoint`, `benchmark`, `average`, `tasks` (of the mean) and `of` (that the benchmark has). Neither
      benchmark's diagnostic sets are part of it.
    """
    found = []
    for benchmark, checkpoint in itertools.product(_BENCHMARKS, dict.fromkeys(row["checkpoint"] for row in rows)):
        tasks = [name for name, task in TASKS.items() if task.benchmark == benchmark]
        medians = [row["median"] for row in rows if row["checkpoint"] == checkpoint and row["task"] in tasks]
        if medians:
            mean = statistics.mean(medians)
            found.append(
                {"checkpoint": checkpoint, "benchmark": benchmark, "average": mean, "tasks": len(medians),
                 "of": len(tasks)}
            )  # fmt: skip
    return found


def table(rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]], widest: int | None = None) -> str:
    """Markdown: a row for each task, a column for each checkpoint; scores times 100.

    With `widest` there are several tables where one of all checkpoints would have longer lines.
    """
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    for many in range(len(checkpoints), 0, -1):
        groups = [checkpoints[i : i + many] for i in range(0, len(checkpoints), many)]
        lines = "\n\n".join("\n".join(_table(rows, means, group)) for group in groups).splitlines()
        if widest is None or max(map(len, lines)) <= widest:
            break
    seeds = sorted({row["seeds"] for row in rows})
    about = f"Median on dev over {' or '.join(map(str, seeds))} seeds of the best learning rate"
    about += " [lowest to highest seed]; times 100."
    if unfinished := sum(row["unfinished"] for row in rows):
        about += f" Learning rates that are left out because they have fewer seeds: {unfinished}."
    return "\n".join([*lines, "", about])


def _table(
    rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]], checkpoints: Sequence[str]
) -> list[str]:
    titles = {name: f"{name} | {', '.join(task.score or task.metrics)}" for name, task in TASKS.items()}
    titles |= {name: f"{benchmark} average |" for name, benchmark in _BENCHMARKS.items()}
    cells = {(row["task"], row["checkpoint"]): _cell(row) for row in rows}
    for mean in means:
        text = f"{100 * mean['average']:.1f} ({mean['tasks']} of {mean['of']} tasks)"
        cells[mean["benchmark"], mean["checkpoint"]] = text
    lines = [f"| task | metric | {' | '.join(checkpoints)} |", f"|---|---|{'---|' * len(checkpoints)}"]
    for name in [name for name in titles if any(line == name for line, _ in cells)]:
        lines.append(f"| {titles[name]} | {' | '.join(cells.get((name, c), '') for c in checkpoints)} |")
    return lines


def _cell(row: Mapping[str, Any]) -> str:
    low, middle, high = (100 * row[name] for name in ("lowest", "median", "highest"))
    return f"{middle:.1f} [{low:.1f} to {high:.1f}] at {row['learning_rate']:g}"


def write_report(folder: epath.Path, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write `report.json`, `report.md` and `report.png`; the lines that say so."""
    rows = summarize(results)
    means = averages(rows)
    text = table(rows, means)
    content = {"tasks": rows, "averages": means, "cells": list(results)}
    picture = io.BytesIO()
    draw(rows, picture)
    parts = {
        REPORT_FILE: (json.dumps(content, indent=1) + "\n").encode(),
        _TABLE_FILE: f"{text}\n".encode(),
        _PICTURE_FILE: picture.getvalue(),
    }
    with writing(f"workdir {folder}"):
        for name, part in parts.items():
            write(folder / name, part)
    return [*table(rows, means, widest=100).splitlines(), "", *(str(folder / name) for name in parts)]


def draw(rows: Sequence[Mapping[str, Any]], file) -> None:
    """The medians with their spread over seeds, a colour for each checkpoint, as PNG."""
    tasks = [name for name in TASKS if any(row["task"] == name for row in rows)]
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    width = max(2.5 + len(tasks) * max(0.9, 0.15 * len(checkpoints)), 5)
    figure, axis = plt.subplots(figsize=(width, 4.2), layout="constrained")
    for number, checkpoint in enumerate(checkpoints):
        theirs = [row for row in rows if row["checkpoint"] == checkpoint]
        shift = 0.7 * (number - (len(checkpoints) - 1) / 2) / len(checkpoints)
        at = [tasks.index(row["task"]) + shift for row in theirs]
        scores = [[100 * row[name] for row in theirs] for name in ("lowest", "median", "highest")]
        low, middle, high = np.array(scores)
        axis.errorbar(at, middle, yerr=(middle - low, high - middle), linestyle="", capsize=3, **look(number))
    axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axis.set_ylabel("score on dev, times 100\n(median of seeds, lowest to highest)")
    axis.grid(alpha=0.3, axis="y")
    for place in range(1, len(tasks)):
        axis.axvline(place - 0.5, color="black", alpha=0.15, linewidth=0.8)
    entries = {name: Line2D([], [], linestyle="", **look(i)) for i, name in enumerate(checkpoints)}
    save(figure, entries, file, "png")
