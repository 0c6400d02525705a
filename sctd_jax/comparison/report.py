"""Report of an arena: what each method reaches in the baseline's time, and the time in which it reaches its loss.

A method's final losses at several budgets are those of runs whose learning rate had fallen at each of them, so that
reading between two budgets compares finished runs, and not points on the way of one.
"""

import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from etils import epath
from matplotlib.lines import Line2D

from sctd_jax.plot import look, save
from sctd_jax.storage import check_own, write

PLATEAU = 1.0  # nats below word frequencies that a baseline must be for others to be ranked against it
_LOSS, _BELOW = "eval/loss", "eval/below_unigram"
_PLAIN = "plain model's loss"
_FIRST_LINE = "| method | time | seeds | held-out loss | nats below word frequencies"


def summarize(results: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, Any]:
    """Finished cells -> the report's content.

    Returns:
      `rows`, one for each method and budget: `method`, `budget`, `seeds` (how many), `diverged` (how many of them),
      `loss`, `lowest`, `highest` (held-out loss after the last step, of the full model or late_mask's own network: mean
      and range over seeds, None if all diverged), `below_unigram` (mean, nats), `more` (means of what else was
      measured, by title), `difference` (mean loss minus the baseline's of the same budget, over the seeds that both
      have) and `within_spread` (whether it is no more than the range over these seeds of the one or of the other, or
      there is one seed alone).
      `saved`: method -> share of the baseline's time that it does without at the baseline's loss of budget 1 (negative
      where it needs more), with `at_least` where its lowest budget is still as good; no entry where it is never as good
      or has one budget alone.
      `ranked`: whether the baseline has left the plateau, and `why_not`.
    """
    rows, order = [], list(_methods(results))
    by_cell = {(one["method"], one["budget"], one["seed"]): one for one in results}
    for (method, budget), group in itertools.groupby(
        sorted(results, key=lambda one: (order.index(one["method"]), -one["budget"])),
        key=lambda one: (one["method"], one["budget"]),
    ):  # fmt: skip
        cells = list(group)
        good = [one for one in cells if not one["final"].get("diverged")]
        losses = [one["final"][_LOSS] for one in good]
        below = [one["final"][_BELOW] for one in good if one["final"].get(_BELOW) is not None]
        theirs = (by_cell.get((baseline, budget, one["seed"])) for one in good)
        pairs = [
            (one["final"][_LOSS], other["final"][_LOSS])
            for one, other in zip(good, theirs, strict=True)
            if other and not other["final"].get("diverged")
        ]
        difference = statistics.mean(mine - other for mine, other in pairs) if pairs and method != baseline else None
        spread = max((max(column) - min(column) for column in zip(*pairs, strict=True)), default=0.0)
        rows.append(
            {
                "method": method, "budget": budget, "seeds": len(cells), "diverged": len(cells) - len(good),
                "loss": statistics.mean(losses) if losses else None,
                "lowest": min(losses, default=None), "highest": max(losses, default=None),
                "below_unigram": statistics.mean(below) if below else None, "more": _more(good),
                "difference": difference,
                "within_spread": None if difference is None else len(pairs) < 2 or abs(difference) <= spread,
            }
        )  # fmt: skip
    why_not = _why_not(rows, baseline)
    saved = {} if why_not else _saved(rows, baseline)
    return {"baseline": baseline, "rows": rows, "saved": saved, "ranked": not why_not, "why_not": why_not}


def _methods(results: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(one["method"] for one in results)


def _why_not(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    whole = next((row for row in rows if row["method"] == baseline and row["budget"] == 1), None)
    if whole is None or whole["loss"] is None:
        return f"{baseline} has no finished cell of budget 1"
    if whole["below_unigram"] is None:
        return f"how far {baseline} is below word frequencies is not known"
    if whole["below_unigram"] < PLATEAU:
        return (
            f"{baseline} ends {whole['below_unigram']:.2f} nats below word frequencies, less than {PLATEAU:g}: on that "
            "plateau all methods look alike"
        )
    return ""


def _saved(rows: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, dict[str, Any]]:
    goal = next(row["loss"] for row in rows if row["method"] == baseline and row["budget"] == 1)
    saved = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted(
            (row["budget"], row["loss"]) for row in rows if row["method"] == method and row["loss"] is not None
        )
        first = next((i for i, (_, loss) in enumerate(points) if loss <= goal), None)
        if method == baseline or len(points) < 2 or first is None:
            continue
        budget = points[first][0]
        if first:  # the loss between two budgets is read off a line
            (low, high_loss), (high, low_loss) = points[first - 1], points[first]
            budget = low + (high - low) * (high_loss - goal) / (high_loss - low_loss)
        saved[method] = {"share": 1 - budget, "at_least": first == 0}
    return saved


def _more(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over seeds of what else was measured, by the title of its column."""
    found: dict[str, list[float]] = {}
    for one in cells:
        if (cosine := one["final"].get("eval/cosine_global")) is not None:
            found.setdefault("drift", []).append(1 - cosine)
        if (plain := one["final"].get("eval/plain_loss")) is not None:
            found.setdefault(_PLAIN, []).append(plain)
        for what, scores in (("probe of", one.get("probes", {})), ("fine-tuned on", one.get("downstream", {}))):
            for task, score in scores.items():
                found.setdefault(f"{what} {task}", []).append(score)
    return {title: statistics.mean(values) for title, values in found.items()}


def markdown(content: Mapping[str, Any]) -> str:
    """The report's tables."""
    baseline, rows = content["baseline"], content["rows"]
    more = list(dict.fromkeys(title for row in rows for title in row["more"]))
    heads = [f"against {baseline}", *more]
    lines = [f"{_FIRST_LINE} | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 5)}"]
    for row in rows:
        loss = "diverged"
        if row["loss"] is not None:
            loss = f"{row['loss']:.3f} [{row['lowest']:.3f} to {row['highest']:.3f}]"
        below = "not known" if row["below_unigram"] is None else f"{row['below_unigram']:.2f}"
        against = ""
        if row["difference"] is not None:
            doubt = " (within the seeds' spread)" if row["within_spread"] else ""
            against = f"{row['difference']:+.3f}{doubt}" if content["ranked"] else "not ranked"
        seeds = f"{row['seeds']}" + (f", {row['diverged']} diverged" if row["diverged"] else "")
        cells = [row["method"], f"{row['budget']:g}", seeds, loss, below, against]
        cells += [f"{row['more'][title]:.3f}" if title in row["more"] else "" for title in more]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Time is in units of the reference time of {baseline} at budget 1. Loss: of the full model on held-out rows "
        "after the last step, mean [lowest to highest seed]. A difference is of the means over the seeds that both "
        "have; it is within the seeds' spread where one of the two has a range over them that is as large, or where "
        "there is one seed alone.",
    ]
    for title, says in (
        ("drift", "Drift: 1 - cosine of [CLS] in the full and the drop pass, after the last layer."),
        (_PLAIN, "Late masking's loss is of its own network; beside it that of the plain model, [MASK] in all layers."),
        ("probe of", "Probe of a task: score of a linear classifier of the rows' mean states, mean over the layers."),
        ("fine-tuned on", "Fine-tuned on a task: median score over the sweep's seeds, mean over cells that have one."),
    ):
        lines[-1] += f" {says}" if any(found.startswith(title) for found in more) else ""
    if not content["ranked"]:
        return "\n".join([*lines, "", f"No ranking: {content['why_not']}."])
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != baseline]
    if several := [name for name in methods if sum(row["method"] == name for row in rows) > 1]:
        lines += ["", f"| method | time to the loss of {baseline} at 1 | of its time |", "|---|---|---|"]
        for name in several:
            if name not in content["saved"]:
                lines.append(f"| {name} | not within its budgets | |")
                continue
            share, least = content["saved"][name]["share"], content["saved"][name]["at_least"]
            most, least = ("at most ", "at least ") if least else ("", "")
            doubted = any(row["within_spread"] for row in rows if (row["method"], row["budget"]) == (name, 1))
            gained = f"{least}{abs(share):.0%} {'saved' if share >= 0 else 'lost'}"
            doubt = " (within the seeds' spread at 1)" if doubted else ""
            lines.append(f"| {name} | {most}{1 - share:.2f} | {gained}{doubt} |")
        lines += ["", "Time to a loss is read between a method's finished budgets; a method of one budget has none."]
    return "\n".join(lines)


def check_out(folder: epath.Path) -> None:
    """Check before any work that a report in the folder writes over nothing but an earlier one."""
    check_own(folder / "report.md", "report of sctd_jax.arena", _FIRST_LINE.encode())
    check_own(folder / "report.json", "report of sctd_jax.arena", b'"baseline"')
    check_own(folder / "cells.jsonl", "cells of sctd_jax.arena", b'"method"')
    for name in ("curves.png", "budgets.png"):
        check_own(folder / name, "picture", b"\x89PNG")


def write_report(folder: epath.Path, results: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    """Write `cells.jsonl`, `report.json`, `report.md`, `curves.png` and `budgets.png`; the lines that say so."""
    content = summarize(results, baseline)
    text = markdown(content)
    pictures = {"curves.png": io.BytesIO(), "budgets.png": io.BytesIO()}
    draw_curves(results, pictures["curves.png"])
    draw_budgets(content["rows"], pictures["budgets.png"])
    parts = {
        "cells.jsonl": "".join(json.dumps(one) + "\n" for one in results).encode(),
        "report.json": (json.dumps(content, indent=1) + "\n").encode(),
        "report.md": f"{text}\n".encode(),
        **{name: picture.getvalue() for name, picture in pictures.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        write(folder / name, part)
    return [*text.splitlines(), "", *(str(folder / name) for name in parts)]


def draw_curves(results: Sequence[Mapping[str, Any]], file) -> None:
    """Held-out loss over reference time, at each method's largest budget: mean, and range over seeds, as PNG."""
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    late = []
    for number, method in enumerate(_methods(results)):
        theirs = [one for one in results if one["method"] == method and not one["final"].get("diverged")]
        if not theirs:
            continue
        largest = max(one["budget"] for one in theirs)
        curves = [one["curve"] for one in theirs if one["budget"] == largest]
        shortest = min(map(len, curves))
        times = [point[0] for point in curves[0][:shortest]]
        losses = np.array([[point[1] for point in curve[:shortest]] for curve in curves])
        style = look(number)
        axis.plot(times, losses.mean(axis=0), **style)
        axis.fill_between(times, losses.min(axis=0), losses.max(axis=0), color=style["color"], alpha=0.15)
        late += [loss for time, *seeds in zip(times, *losses, strict=True) if time >= 0.1 * largest for loss in seeds]
    if late:  # the first loss, ln V, would leave no room to see differences
        margin = 0.05 * (max(late) - min(late)) or 0.01
        axis.set_ylim(min(late) - margin, max(late) + margin)
    axis.set_xlabel("reference time, in units of the baseline's run")
    axis.set_ylabel("held-out loss, nats\n(mean of seeds, lowest to highest)")
    axis.grid(alpha=0.3)
    save(figure, {name: Line2D([], [], **look(i)) for i, name in enumerate(_methods(results))}, file, "png")


def draw_budgets(rows: Sequence[Mapping[str, Any]], file) -> None:
    """Final loss over budget, each point finished runs: mean, and range over seeds, as PNG."""
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        theirs = sorted(
            (row for row in rows if row["method"] == method and row["loss"] is not None), key=lambda row: row["budget"]
        )
        if theirs:
            low, middle, high = (np.array([row[name] for row in theirs]) for name in ("lowest", "loss", "highest"))
            budgets = [row["budget"] for row in theirs]
            axis.errorbar(budgets, middle, yerr=(middle - low, high - middle), capsize=3, **look(number))
    axis.set_xlabel("budget, in units of the baseline's run")
    axis.set_ylabel("held-out loss after the last step, nats\n(mean of seeds, lowest to highest)")
    axis.grid(alpha=0.3)
    save(figure, {name: Line2D([], [], **look(i)) for i, name in enumerate(methods)}, file, "png")
