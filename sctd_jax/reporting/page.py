"""The page as HTML: one file without scripts that loads nothing, and whatever a run's files hold is text in it."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from sctd_jax.errors import UserError, writing
from sctd_jax.pretrain.flops import run_flops
from sctd_jax.pretrain.report import method
from sctd_jax.reporting import curves, examples
from sctd_jax.reporting.runs import NOT_THERE, Run, Sweep, data_line, differences
from sctd_jax.storage import check_own, write
from sctd_jax.train.metrics import duration

GENERATOR = "sctd_jax.report"
_MARK = f'<meta name="generator" content="{GENERATOR}">'
_IN_TITLE = 6  # names of runs in the title at most
_UNITS = ("", "k", "M", "G", "T", "P", "E", "Z")

Cell = tuple[str, str]  # a value, and smaller text below it


class Named(NamedTuple):
    """A run's name, and a piece of its line."""

    name: str
    swatch: str


def check_out(out: Path) -> None:
    """Check before any work that the page can be written, and that no file of another kind is in its place."""
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    try:
        check_own(out, f"page of {GENERATOR}", _MARK.encode())
    except UserError as error:
        raise UserError(f"--out {error}") from error


def save(out: Path, html: str) -> None:
    """Write the page; a kill leaves the one before or the new one."""
    with writing(out):
        write(out, html.encode("utf-8", "backslashreplace"))


def render(
    pretrained: Sequence[Run],
    tuned: Sequence[Run],
    sweeps: Sequence[Sweep],
    groups: Sequence[examples.Group],
    notes: Sequence[str],
    command: str,
) -> str:
    """The page of runs and of the sentences that they were asked; `notes` are what was said about them."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tasks: dict[str, list[Run]] = {}
    for run in tuned:
        tasks.setdefault(_task(run)["task"], []).append(run)
    counts = {"pretraining": len(pretrained), "fine-tuning": len(tuned), "sweep": len(sweeps)}
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        title=_title([one.name for one in (*pretrained, *tuned, *sweeps)]),
        summary=", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items() if count),
        made=time.strftime("%d %B %Y, %H:%M UTC", time.gmtime()),
        cards=[*map(_pretraining_card, pretrained), *map(_tuning_card, tuned)],
        settings=[*_settings("pretraining", pretrained), *_settings("fine-tuning", tuned)],
        pretrained={"runs": _named(pretrained), "panels": curves.pretraining(pretrained) if pretrained else []},
        cost=_cost(pretrained),
        examples=[_examples(group, {run.name: run for run in pretrained}) for group in groups],
        tasks=[
            {"name": name, "runs": _named(runs), "panels": curves.fine_tuning(runs), "table": _scores(runs)}
            for name, runs in tasks.items()
        ],
        sweeps=[{"name": sweep.name, "table": _sweep(sweep)} for sweep in sweeps],
        notes=notes,
        command=command,
    )


def _title(names: Sequence[str]) -> str:
    more = len(names) - _IN_TITLE
    return ", ".join(names if more <= 0 else names[:_IN_TITLE]) + (f" and {more} more" if more > 0 else "")


def _named(runs: Sequence[Run]) -> list[Named]:
    return [Named(run.name, Markup(curves.swatch(run.number))) for run in runs]


def _task(run: Run) -> Mapping[str, Any]:
    assert run.task is not None
    return run.task


def _card(run: Run, about: str, figures: Mapping[str, str]) -> dict[str, Any]:
    model = run.config.model
    network = f"{model.family}, {model.num_layers} layers × {model.hidden_size}, {model.dtype}"
    shown = [(label, value) for label, value in figures.items() if value != NOT_THERE]
    (named,) = _named([run])
    return {**named._asdict(), "about": about, "network": network, "progress": run.progress, "figures": shown}


def _pretraining_card(run: Run) -> dict[str, Any]:
    below, _ = _last(run, "eval/below_unigram", "{:.2f}")
    figures = {"held-out loss": _last(run, "eval/loss")[0], "below word frequencies": below}
    return _card(run, method(run.config.dropping), figures)


def _tuning_card(run: Run) -> dict[str, Any]:
    task, score = _task(run), _metrics(run).get("eval/score")
    start = f"random weights in the network of {task['init']}" if task["random_init"] else task["init"]
    figures = {"score on dev": NOT_THERE if score is None else f"{score:.3f}"}
    return _card(run, f"fine-tuned on {task['task']} from {start}", figures)


def _settings(kind: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Settings in which the runs of a kind differ, with the text of pretrainings."""
    if not runs:
        return []
    rows = [(name, [(_value(value), "") for value in values]) for name, values in differences(runs)]
    lines = []
    if kind == "pretraining":
        texts = [data_line(run) for run in runs]
        if len(set(texts)) == 1:
            lines.append(f"Text{' of all' * (len(runs) > 1)}: {texts[0]}.")
        else:
            lines += [f"Text of {run.name}: {text}." for run, text in zip(runs, texts, strict=True)]
    if not rows:
        lines.append("All their settings are the same." if len(runs) > 1 else "All its settings are the defaults.")
    what = "that differ" if len(runs) > 1 else "other than the defaults"
    title = f"Settings of {kind} {what}"
    heads = ["setting", *_named(runs)]
    return [{"title": title, "lines": lines, "code": True, "heads": heads, "rows": rows, "note": ""}]


def _value(value: Any) -> str:
    return "''" if value == "" else str(value)


def _last(run: Run, metric: str, form: str = "{:.3f}", of: Callable[[float], float] = lambda value: value) -> Cell:
    """A metric where it was measured last, and the step if that is not the run's last one."""
    found = run.last(metric)
    if found is None:
        return NOT_THERE, ""
    return form.format(of(found[1])), "" if found[0] == run.steps_done else f"at step {found[0]:,}"


def _cost(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Results of pretrainings and their price, beside the first of them."""
    if not runs:
        return None
    rows: list[tuple[str, list[Cell]]] = [
        ("held-out loss, nats", [_last(run, "eval/loss") for run in runs]),
        ("below word frequencies, nats", [_last(run, "eval/below_unigram", "{:.2f}") for run in runs]),
        ("masked tokens right", [_last(run, "eval/accuracy", "{:.1%}") for run in runs]),
        ("loss of the drop pass", [_last(run, "eval/drop_loss") for run in runs]),
        ("drift of [CLS]", [_last(run, "eval/cosine_global", "{:.4f}", lambda cosine: 1 - cosine) for run in runs]),
    ]
    seconds = [run.metrics[-1]["seconds"] if run.metrics else None for run in runs]
    tokens = [_tokens(run) for run in runs]
    flops = [run_flops(run.config, run.steps_done) or None for run in runs]
    speeds = [_median(run, "train/tokens_per_second") for run in runs]
    mfu = [_median(run, "train/mfu") for run in runs]
    rows += [
        ("steps", [(f"{run.steps_done:,}", "") for run in runs]),
        ("tokens read", _beside(tokens, _si)),
        ("FLOPs", _beside(flops, _si)),
        (f"time, {'h:' * (max(filter(None, seconds), default=0) >= 3600)}min:s", _beside(seconds, duration)),
        ("tokens a second", _beside(speeds, lambda value: f"{value:,.0f}")),
        ("MFU", [(NOT_THERE if value is None else f"{value:.1%}", "") for value in mfu]),
    ]
    rows = [(label, cells) for label, cells in rows if any(value != NOT_THERE for value, _ in cells)]
    note = (
        "Loss: of the full model on held-out rows. FLOPs: of the training steps, by formula. Time: training, "
        "evaluation and saving, restarts added up. Tokens a second and MFU: medians over the run, steps alone. Times "
        "and speeds compare only between runs on the same machine with nothing else on it."
    ) + (f" Small numbers: times what {runs[0].name} has." if len(runs) > 1 else "")
    return {"heads": ["", *_named(runs)], "rows": rows, "note": note, "code": False}


def _tokens(run: Run) -> float | None:
    stages = run.config.stages(run.steps_done)
    return sum((end - start) * stage.train.batch_size * stage.data.seq_len for start, end, stage in stages) or None


def _median(run: Run, metric: str) -> float | None:
    values = [line[metric] for line in run.metrics if line.get(metric) is not None]
    return statistics.median(values) if values else None


def _beside(values: Sequence[float | None], form: Callable[[float], str]) -> list[Cell]:
    """Values, those after the first with their ratio to it."""
    first = values[0]
    cells = [(NOT_THERE if value is None else form(value), "") for value in values[:1]]
    for value in values[1:]:
        ratio = f"{value / first:.2f} ×" if value is not None and first else ""
        cells.append((NOT_THERE if value is None else form(value), ratio))
    return cells


def _si(value: float) -> str:
    power = 0
    while value >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}".strip()


def _examples(group: examples.Group, runs: Mapping[str, Run]) -> dict[str, Any]:
    asked = [runs[name] for name in group.answers]
    named = dict(zip(group.answers, _named(asked), strict=True))
    steps = ", ".join(f"{name} at step {step}" for name, step in group.steps.items())
    known = [i for i, sentence in enumerate(group.sentences) if sentence.is_known]
    about = (
        f"Sentences from {group.source}; the marked word was hidden, all pieces of it. The likeliest words with their "
        f"probabilities, ✓ the right one; a hyphen goes on with the word before. In float32, by {steps}."
    )
    tally = []
    for name, answers in group.answers.items():
        of = [found for i in known if (found := answers[i])]
        first, any_ = sum(a.guesses[0].is_right for a in of), sum(any(g.is_right for g in a.guesses) for a in of)
        tally.append((named[name], [(f"{first} of {len(of)}", ""), (f"{any_} of {len(of)}", "")]))
    sentences = []
    for i, sentence in enumerate(group.sentences):
        before, truth, after = sentence.shown
        answers = [{"run": named[name], **_answer(of_run[i])} for name, of_run in group.answers.items()]
        sentences.append({"before": before, "truth": truth, "after": after, "answers": answers})
    note = "So few words are a look at the models, no measure of them: that is the held-out loss."
    heads = ["", "first guess right", f"among {examples.GUESSES}"]
    return {
        "about": about,
        "tally": {"heads": heads, "rows": tally, "note": note, "code": False} if known else None,
        "sentences": sentences,
    }


def _answer(found: examples.Answer | None) -> dict[str, Any]:
    if found is None:
        return {"guesses": [], "truth": ""}
    guesses = [{**guess._asdict(), "chance": _percent(guess.chance)} for guess in found.guesses]
    missed = found.chance is not None and not any(guess.is_right for guess in found.guesses)
    pieces = f", {found.pieces} pieces" if found.pieces > 1 else ""
    return {"guesses": guesses, "truth": f"the word itself {_percent(found.chance)}{pieces}" if missed else ""}


def _percent(chance: float | None) -> str:
    assert chance is not None
    return f"{chance:.0%}" if chance >= 0.095 else f"{chance:.1%}" if chance >= 0.001 else "< 0.1%"


def _scores(runs: Sequence[Run]) -> dict[str, Any]:
    """Scores of fine-tunings on one task: of the best checkpoint where they are finished, else the newest."""
    scores, tasks = [_metrics(run) for run in runs], [_task(run) for run in runs]
    metrics = dict.fromkeys(metric for found in scores for metric in found)
    rows = [
        (
            name.removeprefix("eval/").replace("test/", "on test: "),
            [(f"{of[name]:.3f}" if name in of else NOT_THERE, "") for of in scores],
        )
        for name in metrics
    ]
    floors = [(run.result or {}).get("floor", {}) for run in runs]
    shown = [", ".join(f"{share:.3f}" for share in of.values()) for of in floors]
    if any(shown):
        rows.append(("floor", [(of or NOT_THERE, "") for of in shown]))
    starts = [(str(of["init"]), "random weights" if of["random_init"] else "") for of in tasks]
    rows += [
        ("from", starts),
        ("rate", [(f"{of['learning_rate']:g}", f"seed {of['seed']}") for of in tasks]),
        ("checkpoint", [(_scored_at(run), "") for run in runs]),
    ]
    note = "On dev; a finished run's checkpoint is chosen by its score there, which is a little too good."
    if any(shown):
        note += (
            " The floor is the score of the most frequent label, in labels of words of each word's most frequent one."
        )
    return {"heads": ["", *_named(runs)], "rows": rows, "note": note, "code": False}


def _scored_at(run: Run) -> str:
    if run.result is None:
        return "the newest step"
    return "no step: diverged" if run.result.get("diverged") else f"step {run.result.get('step')}"


def _metrics(run: Run) -> dict[str, float]:
    evaluations = [line for line in run.metrics if line.get("eval/score") is not None]
    found = run.result or (evaluations[-1] if evaluations else {})
    return {name: value for name, value in found.items() if name.startswith(("eval/", "test/")) and value is not None}


def _sweep(sweep: Sweep) -> dict[str, Any]:
    """The medians of a sweep: a row for each task, a column for each checkpoint."""
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in sweep.tasks))
    cells: dict[tuple[str, str], Cell] = {}
    for row in sweep.tasks:
        low, middle, high = (100 * row[name] for name in ("lowest", "median", "highest"))
        about = f"{low:.1f} to {high:.1f}, {row['seeds']} seeds, rate {row['learning_rate']:g}"
        cells[row["task"], row["checkpoint"]] = f"{middle:.1f}", about
    for row in sweep.averages:
        about = f"{row['tasks']} of {row['of']} tasks"
        cells[f"{row['benchmark']} average", row["checkpoint"]] = f"{100 * row['average']:.1f}", about
    names = dict.fromkeys(task for task, _ in cells)
    rows = [(task, [cells.get((task, checkpoint), (NOT_THERE, "")) for checkpoint in checkpoints]) for task in names]
    note = "Median on dev over the seeds of the best learning rate, lowest to highest seed; times 100."
    if unfinished := sum(row["unfinished"] for row in sweep.tasks):
        note += f" Learning rates left out because they have fewer seeds: {unfinished}."
    return {"heads": ["task", *checkpoints], "rows": rows, "note": note, "code": False}
