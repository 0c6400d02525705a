"""The page of `sctd_jax.report`: what stands in it, that nothing can run in it, and how a browser shows it."""

import dataclasses
import html.parser
import io
import itertools
import json
import os
import re
import runpy
import shutil
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

from sctd_jax import lease, report
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import HELD_OUT, Rows
from sctd_jax.finetune import sweep_report
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.models import open_run
from sctd_jax.pretrain.flops import step_flops
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.probing import perplexity
from sctd_jax.reporting import curves, examples
from sctd_jax.reporting.runs import open_runs
from sctd_jax.train.metrics import read_metrics
from tests import browser, finetuning, helpers

VOID = {"meta", "br", "wbr", "img", "link", "input"}
EVIL = "<script>alert('x')</script> & <b>"


class Tree(html.parser.HTMLParser):
    """Tags with their attributes, texts by the tags that they stand in; every tag must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, *tags):
        return [text for tag, text in self.texts if text and (not tags or tag in tags)]

    def row(self, label):
        """Texts of the cells of a table's row."""
        found = self.said("th", "td", "span", "small", "h2", "code")
        at = found.index(label)
        return found[at + 1 :]


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    """Two pretrainings, of all tokens and dropping, after four steps."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("full", "drop"):
        config = helpers.config(
            dropping__method=method, data__rows=str(rows), train__steps=4, train__eval_every=2,
            train__checkpoint_every=2, train__log_every=1, optimizer__learning_rate=0.002,
            model__initializer_range=0.2, mesh__data=1,
        )  # fmt: skip
        train_and_evaluate(config, folder / method, lambda line: None)
    return folder


@pytest.fixture(scope="module")
def tuned(pretrained, folders, runs):
    finetuning.run(pretrained, runs / "rte", "rte", folders["rte"], epochs=1)
    return runs / "rte"


@pytest.fixture(scope="module")
def swept(runs):
    """The folder of a sweep as its report leaves it; the cells themselves are not read."""
    folder = runs / "sweep"
    folder.mkdir()
    scores = {("full", 0): 0.5, ("full", 1): 0.625, ("drop", 0): 0.75, ("drop", 1): 0.875}
    results = [
        {"checkpoint": name, "task": "rte", "learning_rate": 1e-3, "seed": seed, "eval/score": score}
        for (name, seed), score in scores.items()
    ]
    sweep_report.write_report(folder, results)
    return folder


def make(out, *arguments):
    """The tree of a page that is written, its text, and what was said."""
    done = helpers.call(report.main, *map(str, arguments), "--out", str(out))
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert done.stdout.splitlines()[-1] == f"{out} ({len(text.encode()) / 1000:,.0f} kB)"
    return Tree(text), text, done.stdout.splitlines()[:-1]


@pytest.fixture(scope="module")
def page(runs, tuned, swept, tmp_path_factory):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    found = make(tmp_path_factory.mktemp("out") / "report.html", runs / "full", runs / "drop", tuned, swept)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before  # the runs are left as they are
    return found


def test_one_file_has_all_and_loads_nothing(page):
    tree, text, said = page
    assert said == []
    assert len(text) < 300_000
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|data:", text)
    assert not tree.named("script") + tree.named("link") + tree.named("img") + tree.named("iframe")
    assert not [name for _, attributes in tree.tags for name in attributes if name.startswith("on")]
    referred = [attributes["href"] for _, attributes in tree.tags if "href" in attributes]
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert referred and {name.removeprefix("#") for name in referred} <= set(ids)
    assert len(ids) == len(set(ids))
    (policy,) = [m for m in tree.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tree.named("meta")


def test_the_page_says_what_differs_what_was_reached_and_what_it_took(page, runs):
    tree, _, _ = page
    assert tree.said("h1") == ["full, drop, rte, sweep"]
    assert tree.said("h2") == [
        "Settings of pretraining that differ", "Settings of fine-tuning other than the defaults",
        "Curves of pretraining", "Result and cost", "Fill-mask", "Fine-tuning: rte", "Sweep: sweep",
    ]  # fmt: skip
    assert any(text.startswith("2 pretrainings, 1 fine-tuning, 1 sweep · ") for text in tree.said("p"))
    assert tree.row("method")[:2] == ["full", "drop"]  # `dropping.` stands before it, and no other setting
    assert tree.said("p").count("finished: 4 steps") == 2
    full, drop = (read_metrics(runs / name) for name in ("full", "drop"))
    last = [[line for line in lines if "eval/loss" in line][-1] for lines in (full, drop)]
    assert tree.row("held-out loss, nats")[:2] == [f"{line['eval/loss']:.3f}" for line in last]
    assert tree.row("drift of [CLS]")[:2] == ["–", f"{1 - last[1]['eval/cosine_global']:.4f}"]
    assert tree.row("steps")[:2] == ["4", "4"]
    assert tree.row("tokens read")[:3] == ["1.02 k", "1.02 k", "1.00 ×"]  # 4 x 8 x 32
    costs = [4 * step_flops(open_run(runs / name, print).config, name) for name in ("full", "drop")]
    shown = tree.row("FLOPs")
    assert shown[:2] == [f"{cost / 1e6:.3g} M" for cost in costs]
    assert shown[2] == f"{costs[1] / costs[0]:.2f} ×" and costs[1] < costs[0]
    panels = ["Loss", "Below word frequencies", "Drift of [CLS]", "Held-out loss over time", "Throughput"]
    assert tree.said("h3") == [*panels, "Training loss", "Score on dev"]
    assert len([svg for svg in tree.named("svg") if "role" in svg]) == 7


def test_fine_tunings_and_sweeps_have_their_scores_beside_the_floor(page, tuned):
    tree, _, _ = page
    result = json.loads((tuned / "result.json").read_text())
    assert result["floor"] == {"dev": 0.5}
    assert tree.row("accuracy")[0] == f"{result['eval/accuracy']:.3f}"
    assert tree.row("floor")[0] == "0.500"
    assert tree.row("checkpoint")[0] == f"step {result['step']}"
    assert tree.row("Sweep: sweep")[:8] == [
        "task", "full", "drop", "rte", "56.2", "50.0 to 62.5, 2 seeds, rate 0.001", "81.2",
        "75.0 to 87.5, 2 seeds, rate 0.001",
    ]  # fmt: skip


def chances(run, rows):
    """Probabilities f64[B, 32, V] at all places of rows, by the plain network."""
    ids_BN = np.stack([np.pad(row, (0, 32 - len(row))) for row in rows])
    network = jax.jit(MaskedLm(run.config.model, 0, 0).apply)
    logits_BNV = np.asarray(network({"params": run.model.params()}, ids_BN, ids_BN > 0), np.float64)
    return np.exp(logits_BNV) / np.exp(logits_BNV).sum(-1, keepdims=True)


def test_the_runs_guess_the_same_words_of_their_held_out_rows(page, runs):
    tree, _, _ = page
    (both, _, _) = open_runs([str(runs / name) for name in ("full", "drop")], print)
    (group,) = examples.ask(both, "", 8, print)
    assert list(group.answers) == ["full", "drop"] and group.steps == {"full": 4, "drop": 4}
    assert tree.said("mark") == [sentence.shown[1] for sentence in group.sentences]
    assert len(group.sentences) == 8
    read = tokenizer.load(tokenizer.find(runs / "full"), kept=True)
    (folder,) = {run.config.data.rows for run in both}
    rows = Rows(folder, HELD_OUT)
    texts = [read.decode(row[row > 4].tolist()) for row in rows.read(range(len(rows)))]
    for sentence in group.sentences:
        assert sentence.text[sentence.start : sentence.end].isalpha()
        assert any(sentence.text in text for text in texts)
    words = [examples.hide(sentence, read, 22) for sentence in group.sentences]
    assert {len(word.at_m) for word in words} > {1}  # some are several pieces
    for run in both:
        all_BNV = chances(run, [word.ids_n for word in words])
        for word, of_NV, found in zip(words, all_BNV, group.answers[run.name], strict=True):
            of_MV = of_NV[word.at_m]
            assert found.chance == pytest.approx(np.prod(of_MV[np.arange(len(of_MV)), word.truth_m]), rel=1e-3)
            # Every word that the three likeliest pieces of each place make up.
            products = [np.prod(picked) for picked in itertools.product(*np.sort(of_MV)[:, -3:])]
            assert [guess.chance for guess in found.guesses] == pytest.approx(sorted(products)[:-4:-1], rel=1e-3)


def test_every_piece_of_a_word_is_hidden_and_a_long_text_is_cut_around_it(runs):
    read = tokenizer.load(tokenizer.find(runs / "full"), kept=True)
    text = f"{'our country and ' * 30}extraordinarily{' and our country' * 30}"
    start = text.index("extra")
    sentence = examples.Sentence(text, start, start + len("extraordinarily"), is_known=True)
    hidden = examples.hide(sentence, read, 20)
    assert len(hidden.ids_n) == 22 and (hidden.ids_n[0], hidden.ids_n[-1]) == (read.special.cls, read.special.sep)
    assert (hidden.ids_n == read.special.mask).nonzero()[0].tolist() == hidden.at_m.tolist()
    assert read.decode(hidden.truth_m.tolist()).strip() == "extraordinarily" and len(hidden.truth_m) > 2
    assert "our country and" in read.decode(hidden.ids_n[1 : hidden.at_m[0]].tolist())
    assert examples.hide(sentence._replace(start=start + 1), read, 20) is None  # within a piece
    before, word, after = sentence.shown
    assert (before[0], word, after[-1]) == ("…", "extraordinarily", "…")
    assert (
        90 < len(before) < 115 and before.endswith(" country and ") and before.split()[1] in ("our", "country", "and")
    )


@pytest.mark.parametrize("method", ["full", "late_mask"])
def test_a_single_piece_is_as_likely_as_to_the_pseudo_perplexity(method):
    config = helpers.config(dropping__method=method, model__max_positions=40)
    params = helpers.moved(helpers.initial(config).params, 0.2)
    late = config.drop_layers[0] if method == "late_mask" else None
    ids_BN, at_B = np.asarray(helpers.random_rows(3, pad=True)), np.array([4, 9, 2], np.int32)
    scored = perplexity.jit_token_losses(config.model, helpers.SPECIAL.mask, late)(params, ids_BN, ids_BN > 0, at_B)
    hidden_BN, truth_B = ids_BN.copy(), ids_BN[np.arange(3), at_B]
    hidden_BN[np.arange(3), at_B] = helpers.SPECIAL.mask
    fill = examples.jit_fill(config.model, helpers.SPECIAL.pad, late)
    logs, _, truths = fill(params, hidden_BN, at_B[:, None], truth_B[:, None])
    np.testing.assert_allclose(-truths[:, 0], scored, rtol=1e-4)
    # Places of padding beside it change nothing, in whatever number.
    longer = np.concatenate([hidden_BN, np.zeros((3, 3), np.int32)], axis=1)
    at_BM = np.stack([at_B, np.full(3, 33, np.int32), np.full(3, 34, np.int32)], axis=1)
    again, _, truths = fill(params, longer, at_BM, np.repeat(truth_B[:, None], 3, axis=1))
    np.testing.assert_allclose(-truths[:, 0], scored, rtol=1e-4)
    np.testing.assert_allclose(again[:, 0], logs[:, 0], rtol=1e-4)


def test_texts_of_the_users_are_filled_and_markup_in_them_is_text(runs, tmp_path):
    evil = tmp_path / EVIL.replace("/", "")
    shutil.copytree(runs / "full", evil)
    config = json.loads((evil / "config.json").read_text())
    config["data"]["rows"] = f"{EVIL}/rows"
    (evil / "config.json").write_text(json.dumps(config))
    lines = [
        "the people of the [MASK] States", f"we have {EVIL} the honour of the country", "<mask> is it", "nothing",
    ]  # fmt: skip
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    arguments = (evil, runs / "drop", "--text", tmp_path / "texts.txt")
    tree, text, said = make(tmp_path / "report.html", *arguments)
    wanted = "a [MASK] or a word of up to 3 pieces between others"
    assert said == [f"--text {tmp_path}/texts.txt: 1 lines are passed over, without {wanted}"]
    assert not tree.named("script") + tree.named("b") and "<script>" not in text
    assert tree.said("h1") == [f"{evil.name}, drop"]
    assert f"{EVIL}/rows" in tree.said("td")
    assert tree.said("mark")[::2] == ["[MASK]", "[MASK]"]
    sentences = " ".join(tree.said("p", "mark"))
    assert "the people of the [MASK] States" in sentences and "alert" in sentences
    known = tree.row("first guess right")[1:]
    assert known[1].endswith(" of 1")  # a mask of the user's hides nothing that could be right
    assert said[0] in tree.said("li")
    tree, _, said = make(tmp_path / "report.html", *arguments, "--examples", "1")
    assert len(tree.said("mark")) == 1
    assert said == tree.said("li") == [f"--text {tmp_path}/texts.txt: its first 1 lines are asked, more by --examples"]
    _, _, said = make(tmp_path / "report.html", *arguments, "--examples", "0")
    assert said[0].startswith(f"--text {tmp_path}/texts.txt is not read: ")
    done = helpers.call(report.main, str(evil), "--text", str(tmp_path / "none.txt"), "--out", str(tmp_path / "x.html"))
    assert (done.returncode, done.stderr) == (2, f"error: --text {tmp_path}/none.txt: No such file or directory\n")


def test_what_is_gone_or_damaged_is_said_on_the_page_and_in_the_console(runs, tmp_path, rows):
    moved = tmp_path / "moved"
    shutil.copytree(runs / "drop", moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["rows"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    with (moved / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9\n')
    gone = f"the rows that it was trained on are not in {tmp_path}/gone; --text FILE takes sentences of yours"
    tree, _, said = make(tmp_path / "a.html", moved)
    assert said == [
        f"warning: {moved}/metrics.jsonl: 1 damaged lines are left out", f"moved: no fill-mask examples: {gone}",
    ]  # fmt: skip
    assert tree.said("li") == said and not tree.said("mark")
    # Another run of the same rows still knows where they are.
    tree, _, said = make(tmp_path / "a.html", moved, runs / "full", "--examples", "2")
    assert len(tree.said("mark")) == 2 and len(said) == 1
    # A run without weights and metrics is on the page all the same.
    shutil.rmtree(moved / "checkpoints")
    (moved / "metrics.jsonl").unlink()
    tree, _, said = make(tmp_path / "a.html", moved)
    assert said == ["moved: no fill-mask examples: it has no checkpoint"]
    assert "not begun" in tree.said("p") and not tree.said("h3")


def test_states_of_a_run_are_told(runs, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(runs / "full", copied)
    config = json.loads((copied / "config.json").read_text())
    config["train"]["steps"] = 5
    (copied / "config.json").write_text(json.dumps(config))

    def progress():
        ((run,), _, _) = open_runs([str(copied)], print)
        return run.progress

    assert progress() == "stopped: 4 of 5 steps"
    record = {"what": "training", "host": "here", "pid": os.getpid(), "machine": lease._machine(), "since": "today"}
    (copied / lease.LEASE_FILE).write_text(json.dumps(record))
    assert progress() == "under way: 4 of 5 steps"
    (copied / lease.LEASE_FILE).write_text(json.dumps(record | {"pid": 1 << 22}))  # no process has this number
    assert progress() == "stopped: 4 of 5 steps"
    shutil.rmtree(copied / "checkpoints" / "4")
    assert progress() == "stopped: 4 of 5 steps, saved at step 2"


def test_a_file_of_another_kind_is_never_written_over(runs, tmp_path):
    out = tmp_path / "notes.html"
    out.write_text("mine")
    done = helpers.call(report.main, "nowhere", "--out", str(out))  # said before any run is looked at
    assert done.returncode == 2
    assert done.stderr == f"error: --out {out} is there, and is no page of sctd_jax.report: give another name\n"
    assert out.read_text() == "mine"
    for there, message in ((tmp_path, "a file is expected"), (tmp_path / "no" / "x.html", "there is no folder")):
        done = helpers.call(report.main, "nowhere", "--out", str(there))
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    out.unlink()
    make(out, runs / "full", "--examples", "0")
    tree, _, _ = make(out, runs / "drop", "--examples", "0")  # a page of ours may be made anew
    assert tree.said("h1") == ["drop"]


def test_what_is_no_run_ends_with_one_line(runs, swept, tmp_path):
    arena, letters, broken = (tmp_path / name for name in ("arena", "letters", "broken"))
    for folder in (arena, letters, broken):
        folder.mkdir()
    (arena / "report.json").write_text('{"baseline": "full", "rows": []}')
    (letters / "config.json").write_text('{"model_type": "bert"}')
    (broken / "report.json").write_text('{"tasks": [{}], "averages": []}')
    damaged = tmp_path / "damaged"
    shutil.copytree(runs / "full", damaged)
    (damaged / "config.json").write_text("{")
    for paths, message in (
        ([tmp_path], f"{tmp_path}: expected the workdir of a run, or of a sweep with a finished cell"),
        ([arena], "is the report of an arena"),
        ([broken], f"{broken}/report.json is damaged: expected what a sweep writes there"),
        ([damaged], f"{damaged}/config.json is damaged"),
        ([letters], f"{letters}"),
        ([runs / "full", f"{runs / 'full'}/."], "is named twice"),
        (["x"] * 29, "one page tells 28 runs apart, found 29: name fewer"),
    ):
        done = helpers.call(report.main, *map(str, paths), "--out", str(tmp_path / "x.html"))
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "x.html").exists()


def test_curves_scale_take_the_pages_colours_and_stay_small(runs):
    (both, _, _) = open_runs([str(runs / name) for name in ("full", "drop")], print)
    losses = [3 + 9 / (s + 1) + (s * 2654435761 % 97) / 970 for s in range(20_000)]
    long = [{"step": s, "seconds": s / 10, "eval/loss": x, "train/loss": x} for s, x in enumerate(losses)]
    long[-1]["eval/unigram_loss"] = 3.05
    seven_and_28 = [dataclasses.replace(run, metrics=long, number=n) for run, n in zip(both, (6, 27), strict=True)]
    panels = {panel.title: panel for panel in curves.pretraining(seven_and_28)}
    assert list(panels) == ["Loss", "Held-out loss over time"]
    for panel in panels.values():
        assert 'viewBox="0 0 338.4 216"' in panel.svg and "<svg width=" not in panel.svg and len(panel.svg) < 60_000
        assert "var(--run-6)" in panel.svg and "var(--ink)" in panel.svg and "#0102" not in panel.svg
        assert "font-family" not in panel.svg and "stroke-dasharray" in panel.svg  # the 28th has another line style
    assert "hours" not in panels["Held-out loss over time"].svg
    looks = {curves.swatch(number) for number in range(curves.MOST_RUNS)}
    assert len(looks) == curves.MOST_RUNS
    thinned = max(len(re.findall("L ", d)) for d in re.findall(r' d="([^"]*)"', panels["Loss"].svg))
    assert 200 < thinned <= 401
    assert "Dotted: word frequencies alone (3.050)." in panels["Loss"].note


@pytest.mark.skipif(not browser.find(), reason="needs a headless Chromium: make browser")
def test_chromium_shows_it_on_a_phone_without_a_network(page, runs, tmp_path):
    """With a long name and seven runs, too."""
    named = [tmp_path / f"run-{EVIL.replace('/', '')}-{'long' * 12}-{i}" for i in range(5)]
    for path in named:
        shutil.copytree(runs / "drop", path)
    many = (*named, runs / "full", runs / "drop", runs / "rte", runs / "sweep", "--examples", "2")
    make(tmp_path / "many.html", *many)
    (tmp_path / "few.html").write_text(page[1])
    bad = ("Network.requestWillBeSent", "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    drawn = "[...document.querySelectorAll('.panels svg')].map(svg => svg.getBoundingClientRect().toJSON())"
    letters = """[...document.querySelectorAll('.panels svg text')].map(text =>
        parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getBoundingClientRect().width / 338.4)"""
    with browser.chromium(tmp_path / "profile") as tab:
        for name, width in (("few", 390), ("many", 390), ("many", 1200)):
            path = tmp_path / f"{name}.html"
            tab.open(path, width)
            assert tab.evaluate("document.scrollingElement.scrollWidth") <= width  # no scrolling sideways
            events = [event for event in tab.events if event["method"] in bad]
            assert [event["params"].get("request", event)["url"] for event in events] == [path.as_uri()]
            pictures = tab.evaluate(drawn)
            assert len(pictures) == 7 and all(one["x"] >= 0 and one["right"] <= width for one in pictures)
            assert all(one["width"] > 250 and one["height"] > 150 for one in pictures)
            assert min(tab.evaluate(letters)) > 9  # pixels
            assert tab.evaluate("document.scripts.length") == 0
        shots = []
        for dark in (False, True):
            tab.open(tmp_path / "few.html", 390, dark)
            shots.append(matplotlib.image.imread(io.BytesIO(tab.screenshot()))[..., :3])
    light, dark = shots
    assert light.shape[1] == 390 and light.shape[0] > 2000
    assert light[0, 0].min() > 0.9 and dark[0, 0].max() < 0.2
    for picture in shots:  # words and curves are on it: of each run's colour some hundred pixels
        assert np.abs(picture - picture[0, 0]).max(-1).mean() > 0.02
    for color in ("#0072b2", "#d55e00"):
        wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(light - wanted).max(-1) < 0.02).sum() > 300


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(report.__file__, run_name="__main__")
    assert "--text" in capsys.readouterr().out
