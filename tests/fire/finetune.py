"""Files to fine-tune on, in each task's layout: damaged, hostile or absurd."""

import json
from collections.abc import Callable
from pathlib import Path

from tests import task_files
from tests.fire.case import EITHER, Case, damage, special, write

COMMAND = (
    "sctd_jax.main --mode=finetune --config=configs/finetune.py --config.task={} --config.init=$base/run "
    "--config.data_dir=$here/{} --config.max_length=32 --config.batch_size=4 --config.epochs=1 --workdir=$here/out {}"
)
DONE = ("out", "out/*")
Change = Callable[[Path], object]  # of the task's folder
LINES = [f"text,label\nsoup {i} is good,{('no', 'yes')[i % 2]}\n".splitlines()[1] for i in range(8)]


def _task(
    task: str, name: str, change: Change, *words: str, status: int | tuple[int, ...] = 2, flags: str = ""
) -> Case:
    """The small files of a task, changed."""
    return _in_folder(task, name, lambda here: change(task_files.write_task(here / "data", task)), words, status, flags)


def _in_folder(task, name, make: Change, words, status=2, flags: str = "", data: str = "data") -> Case:
    new = DONE if status != 2 else ()
    command = COMMAND.format(task, data, flags)
    return Case(f"{task}: {name}", command, lambda here, base: make(here), status, tuple(words), new)


def _csv(
    name: str, content: str | bytes, *words: str, status=2, task: str = "classification", flags="", file="own.csv"
):
    """One file of the user's own."""

    def make(here: Path) -> None:
        (here / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return _in_folder(task, name, make, words, status, f"--config.heldout_share=0.25 {flags}", file)


def _jsonl(
    name: str, rows: list[dict | str], *words: str, status=2, task: str = "classification", flags: str = ""
) -> Case:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return _csv(name, text, *words, status=status, task=task, flags=flags, file="own.jsonl")


SWEEP = (
    "sctd_jax.main --mode=sweep --config=configs/sweep.py --config.tasks={} --config.inits={} --workdir={} "
    "--config.data_dir=$base/own.csv --config.heldout_share=0.25 --config.max_length=32 --config.batch_size=4 "
    "--config.epochs=1 --config.seeds=1 --config.learning_rates=1e-4"
)


def _sweep(name: str, make: Change, *words: str, tasks="classification", inits="$base/run", workdir="$here/out"):
    return Case(f"sweep: {name}", SWEEP.format(tasks, inits, workdir), lambda here, base: make(here), words=words)


def _table(*rows: str, header: str = "text,label") -> str:
    return "\n".join([header, *rows, *LINES]) + "\n"


def _edit(file: str, change: Callable[[str], str]) -> Change:
    def edit(folder: Path) -> None:
        (folder / file).write_text(change((folder / file).read_text()))

    return edit


def _object(file: str, change: Callable[[dict], object]) -> Change:
    """Change the first object of JSON lines, or that of a JSON file."""

    def edit(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        first = json.loads(lines[0])
        change(first)
        (folder / file).write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")

    return edit


def _field(line: int, column: int, value: str) -> Callable[[str], str]:
    """One field of a TSV file, by line and column from 0."""

    def change(text: str) -> str:
        rows = [row.split("\t") for row in text.splitlines()]
        rows[line][column] = value
        return "\n".join("\t".join(row) for row in rows) + "\n"

    return change


def _question(change: Callable[[dict, dict], object]) -> Change:
    """The first paragraph of SQuAD's training file, and its first question."""

    def edit(folder: Path) -> None:
        path = next(folder.glob("train-*.json"))
        content = json.loads(path.read_text())
        paragraph = content["data"][0]["paragraphs"][0]
        change(paragraph, paragraph["qas"][0])
        path.write_text(json.dumps(content))

    return edit


def _long_context(paragraph: dict, question: dict) -> None:
    paragraph["context"] += " The river is long and wide." * 24_000


def _damaged(task: str, file: str, seed: int) -> Case:
    return _task(task, f"bytes of {file}, {seed}", lambda folder: damage(folder / file, seed), status=EITHER)


OTHERS = [{"text": "a", "label": "y"}] * 5
RESULT = "out/run/classification/0.0001-seed0/result.json"
HUGE, DIGITS = 10**400, "9" * 4500
DEEP = '{"a":' * 10_000 + "1" + "}" * 10_000
CASES = [
    # Folders
    _in_folder("sst2", "no folder", lambda here: None, ("sst2", "no folder")),
    _in_folder("sst2", "an empty folder", lambda here: (here / "data").mkdir(), ("train.tsv",)),
    _in_folder("sst2", "a file in the place of the folder", write("data", "x"), ("sst2",)),
    _in_folder("classification", "no file", lambda here: None, ("config.data_dir",)),
    _in_folder("classification", "an empty folder", lambda here: (here / "data").mkdir(), ("train",)),
    _in_folder("classification", "another suffix", write("own.xlsx", "x"), (".csv",), data="own.xlsx"),
    _in_folder("ner", "another suffix", write("own.pdf", "x"), (".conll",), data="own.pdf"),
    _in_folder("nonsense", "no such task", lambda here: None, ("config.task", "sst2")),
    _in_folder("", "no task", lambda here: None, ("config.task",)),
    # A user's own tables
    _csv("empty", "", "no rows", file="own.csv"),
    _in_folder("classification", "a pipe", special("own.csv"), ("own.csv is a pipe",), data="own.csv"),
    _in_folder(
        "classification", "an endless device", special("own.jsonl", "/dev/zero"), ("is a device",), data="own.jsonl"
    ),
    _task("sst2", "a pipe in the place of a file", special("train.tsv"), "train.tsv is a pipe"),
    _csv("a header alone", "text,label\n", "own.csv"),
    _csv("no such field", _table(header="words,label"), "line 2", "text_field", "words"),
    _csv("a header twice", _table(header="text,text"), "line 1", "twice"),
    _csv("semicolons", "text;label\na;b\n", "line 1", "','"),
    _csv("a missing column", _table("soup"), "line 2", "1 columns, expected 2"),
    _csv("columns too many", _table("soup,yes,1"), "line 2", "3 columns, expected 2"),
    _csv("an open quote", _table('"soup,yes'), "line 2", "not CSV"),
    _csv("NUL bytes", b"text,label\na\0b,yes\nb,no\n", "own.csv"),
    _csv("not UTF-8", b"text,label\ncaf\xe9,yes\n", "line 2", "UTF-8"),
    _csv("UTF-16", _table().encode("utf-16"), "line 1", "UTF-8"),
    _csv("lines that end in CR alone", _table().replace("\n", "\r"), "CR"),
    _csv("a text of spaces", _table("   ,yes"), "line 2", "'text' is empty"),
    _csv("a label of spaces", _table("soup,  "), "line 2", "'label' is empty"),
    _csv("one label", "text,label\n" + "soup,yes\n" * 9, "1 different labels"),
    _csv("a label with a space before it", _table("soup, yes"), "' yes'", "'yes'", "two classes"),
    _csv("a label in capitals", _table("soup,YES"), "'YES'", "two classes"),
    _csv("a label with a no-break space", _table("soup,yes\u00a0"), "two classes"),
    _csv("a label with a space of no width", _table("soup,yes\u200b"), "'yes\\u200b'", "two classes"),
    _csv("a label with a soft hyphen", _table("soup,y\u00ades"), "two classes"),
    _csv("a label of a byte order mark", _table("soup,\ufeff"), "line 2", "nothing to see"),
    _csv("a label in full-width letters", _table("soup,ｙｅｓ"), "two classes"),
    _csv("labels 1 and 1.0", "text,label\n" + "a,1\nb,1.0\nc,0\n" * 4, "two classes"),
    _csv("nan as a class", _table("soup,nan"), "line 2", "'nan'"),
    _csv("NaN as a class", _table("soup,NaN"), "line 2", "'NaN'"),
    _csv("<NA> as a class", _table("soup,<NA>"), "line 2", "'<NA>'"),
    _csv(
        "a text that makes the dev set empty",
        "text,label\na,yes\nb,no\n",
        "heldout_share",
        flags="--config.heldout_share=0.0",
    ),
    _csv("heldout_share of 1", _table(), "heldout_share", flags="--config.heldout_share=1.0"),
    _csv("heldout_share that is no number", _table(), "heldout_share", flags="--config.heldout_share=nan"),
    _csv("a field of 10 MB", _table("the " * 2_500_000 + ",yes"), status=0),
    _csv("a field of 3 MB without a space", _table("soup" * 750_000 + ",yes"), status=0),
    _csv("1,000 columns", "text,label," + ",".join(map(str, range(998))) + "\nsoup,yes\n", "line 2", "expected 1000"),
    _csv("weights of a label that is not there", _table(), "class_weights", flags="--config.class_weights=maybe=2"),
    _csv("an infinite weight of a label", _table(), "class_weights", flags="--config.class_weights=yes=inf"),
    _csv("a weight in full-width digits", _table(), "class_weights", flags="--config.class_weights=yes=\uff12"),
    _csv("a negative weight of a label", _table(), "class_weights", flags="--config.class_weights=yes=-1"),
    _csv("labels as second texts", _table(), "pair_field", flags="--config.pair_field=label"),
    _csv("texts as labels", _table(), "label_field", flags="--config.label_field=text"),
    _csv("no second text", _table(), "pair_field", flags="--config.pair_field=other"),
    _csv("a score that is a word", _table("soup,good"), "line 2", "no number", task="regression"),
    _csv(
        "an infinite score", "text,label\nsoup,inf\nfish,1\nbread,2\nnuts,3\n", "line 2", "no number", task="regression"
    ),
    _csv("a score of nan", "text,label\nsoup,nan\nfish,1\nbread,2\nnuts,3\n", "line 2", "no number", task="regression"),
    _csv(
        "a score of 1e300",
        "text,label\nsoup,1e300\nfish,1\nbread,2\nnuts,3\n",
        "line 2",
        "no number",
        task="regression",
    ),
    _csv(
        "a score of 4,500 digits",
        f"text,label\nsoup,{DIGITS}\nfish,1\nbread,2\nnuts,3\n",
        "line 2",
        "no number",
        task="regression",
    ),
    _csv("a score of 1_5", "text,label\nsoup,1_5\nfish,1\nbread,2\nnuts,3\n", "line 2", "no number", task="regression"),
    _csv("commas in a TSV", "text,label\nsoup,yes\n", "line 1", "one column", file="own.tsv"),
    # JSON lines
    _jsonl(
        "an integer beyond float range as a label",
        [{"text": "a", "label": HUGE}, {"text": "b", "label": 1}] * 5,
        status=0,
    ),
    _jsonl(
        "an integer beyond float range as a score",
        [{"text": "a", "label": HUGE}] * 9,
        "line 1",
        "no number",
        task="regression",
    ),
    _jsonl("an integer of 4,500 digits", [f'{{"text": "a", "label": {DIGITS}}}'] * 9, "line 1", "not JSON"),
    _jsonl("infinity as a label", [{"text": "a", "label": float("inf")}] * 9, "line 1", "label"),
    _jsonl("NaN as a label", [{"text": "a", "label": float("nan")}] * 9, "line 1", "label"),
    _jsonl("null as a label", [{"text": "a", "label": None}] * 9, "line 1", "label"),
    _jsonl("a list as a label", [{"text": "a", "label": ["x"]}] * 9, "line 1", "label"),
    _jsonl("a number as a text", [{"text": 5, "label": "x"}] * 5 + OTHERS, "line", "text"),
    _jsonl("null as a text", [{"text": None, "label": "x"}] * 5 + OTHERS, "line", "text"),
    _jsonl("half of a surrogate pair", ['{"text": "\\ud800", "label": "x"}'] * 5 + OTHERS, "line", "surrogate"),
    _jsonl("a list as a row", [[1, 2]] * 9, "line 1", "not a JSON object"),
    _jsonl("nested 10,000 deep", [DEEP] * 2, "line 1", "not JSON"),
    _jsonl("a field twice", ['{"text": "a", "text": "b", "label": "x"}'] * 9, "line 1", "twice"),
    _jsonl(
        "cut in the middle of a line", [{"text": "a", "label": "x"}] * 5 + ['{"text": "a", "la'], "line 6", "not JSON"
    ),
    _jsonl("a label of 1 MB", [{"text": "a", "label": "x" * 1_000_000}, {"text": "b", "label": "y"}] * 5, "label"),
    _jsonl(
        "a label with a terminal's escapes",
        [{"text": "a", "label": "\x1b[31mx\n"}, {"text": "b", "label": "y"}] * 5,
        "label",
    ),
    # GLUE
    _task("sst2", "a missing file", lambda f: (f / "dev.tsv").unlink(), "dev.tsv"),
    _task("sst2", "an empty file", write("train.tsv", ""), "train.tsv", "no rows"),
    _task("sst2", "a header alone", write("train.tsv", "sentence\tlabel\n"), "train.tsv", "no rows"),
    _task("sst2", "no header", _edit("train.tsv", lambda t: t.partition("\n")[2]), "train.tsv", "line 2"),
    _task("sst2", "an unknown label", _edit("train.tsv", _field(1, 1, "2")), "line 2", "unknown label '2'"),
    _task("sst2", "a label with a space", _edit("train.tsv", _field(1, 1, " 1")), "line 2", "unknown label ' 1'"),
    _task(
        "sst2", "a label of 100,000 letters", _edit("train.tsv", _field(1, 1, "x" * 100_000)), "line 2", "unknown label"
    ),
    _task("sst2", "a column missing", _edit("train.tsv", lambda t: t + "soup\n"), "columns, expected 2"),
    _task(
        "sst2",
        "a folder in the place of a file",
        lambda f: ((f / "dev.tsv").unlink(), (f / "dev.tsv").mkdir()),
        "dev.tsv",
    ),
    _task(
        "sst2",
        "a loop of links",
        lambda f: ((f / "dev.tsv").unlink(), (f / "dev.tsv").symlink_to("dev.tsv")),
        "dev.tsv",
    ),
    _task("cola", "a label of -1", _edit("train.tsv", _field(0, 1, "-1")), "line 1", "unknown label"),
    _task("mrpc", "no second sentence", _edit("dev.tsv", _field(1, 4, "")), "line 2", "empty"),
    _task("stsb", "a score of 99", _edit("train.tsv", _field(1, 9, "99")), "line 2", "outside of 0 to 5"),
    _task("stsb", "a score of -1", _edit("dev.tsv", _field(1, 9, "-1")), "line 2", "outside of 0 to 5"),
    _task("stsb", "a score of nan", _edit("train.tsv", _field(1, 9, "nan")), "line 2", "no number"),
    _task("stsb", "an id of 4,500 digits", _edit("train.tsv", _field(1, 0, DIGITS)), "line 2", "index", "whole number"),
    _task(
        "stsb",
        "an id in full-width digits",
        _edit("train.tsv", _field(1, 0, "１２")),
        "line 2",
        "index",
        "whole number",
    ),
    _task("mnli", "an unknown label", _edit("train.tsv", _field(1, 11, "-")), "line 2", "unknown label", "judges"),
    _task("qnli", "a text of white space", _edit("train.tsv", _field(1, 1, "  ")), "line 2", "empty"),
    # SuperGLUE
    _task(
        "boolq",
        "a label that is a text",
        _object("train.jsonl", lambda o: o.update(label="perhaps")),
        "line 1",
        "unknown label",
    ),
    _task(
        "boolq", "a passage that is a list", _object("train.jsonl", lambda o: o.update(passage=[])), "line 1", "passage"
    ),
    _task(
        "cb", "an id beyond 64 bits", _object("train.jsonl", lambda o: o.update(idx=HUGE)), "line 1", "idx", "64 bits"
    ),
    _task("copa", "choice 2 of 2", _object("train.jsonl", lambda o: o.update(label=2)), "line 1", "expected 0 to 1"),
    _task("copa", "choice beyond 64 bits", _object("train.jsonl", lambda o: o.update(label=HUGE)), "line 1", "label"),
    _task(
        "copa",
        "an unknown question",
        _object("train.jsonl", lambda o: o.update(question="why")),
        "line 1",
        "unknown question",
    ),
    _task("wic", "a span beyond the text", _object("train.jsonl", lambda o: o.update(end1=10_000)), "line 1"),
    _task("wic", "a span that ends before it begins", _object("train.jsonl", lambda o: o.update(end1=0)), "line 1"),
    _task("wic", "a span beyond 64 bits", _object("train.jsonl", lambda o: o.update(start1=HUGE)), "line 1", "start1"),
    _task(
        "wsc",
        "a word beyond the text",
        _object("train.jsonl", lambda o: o["target"].update(span1_index=10**9)),
        "line 1",
    ),
    _task("wsc", "a negative word", _object("train.jsonl", lambda o: o["target"].update(span1_index=-1)), "line 1"),
    _task("wsc", "no target", _object("train.jsonl", lambda o: o.pop("target")), "line 1", "target"),
    _task(
        "multirc",
        "no answers",
        _object("train.jsonl", lambda o: o["passage"]["questions"][0].update(answers=[])),
        "line 1",
        "answers",
    ),
    _task(
        "multirc",
        "questions that are a number",
        _object("train.jsonl", lambda o: o["passage"].update(questions=5)),
        "line 1",
        "questions",
    ),
    _task(
        "record",
        "an entity beyond the passage",
        _object("train.jsonl", lambda o: o["passage"]["entities"][0].update(end=10**9)),
        "line 1",
    ),
    _task(
        "record",
        "no placeholder",
        _object("train.jsonl", lambda o: o["qas"][0].update(query="What?")),
        "line 1",
        "@placeholder",
    ),
    # SQuAD
    _task("squad1", "no JSON", write("train-v1.1.json", "{"), "train-v1.1.json", "not JSON"),
    _task("squad1", "nested 10,000 deep", write("train-v1.1.json", DEEP), "train-v1.1.json", "not JSON"),
    _task("squad1", "no data", write("train-v1.1.json", "{}"), "train-v1.1.json", "data"),
    _task("squad1", "data that is a text", write("train-v1.1.json", '{"data": "x"}'), "train-v1.1.json", "data"),
    _task("squad1", "no article", write("train-v1.1.json", '{"data": []}'), "train-v1.1.json", "no rows"),
    _task(
        "squad1",
        "an answer elsewhere",
        _question(lambda p, q: q["answers"][0].update(answer_start=1)),
        "does not stand",
    ),
    _task(
        "squad1",
        "an answer before the text",
        _question(lambda p, q: q["answers"][0].update(answer_start=-5)),
        "does not stand",
    ),
    _task(
        "squad1",
        "an answer beyond 64 bits",
        _question(lambda p, q: q["answers"][0].update(answer_start=HUGE)),
        "answer_start",
    ),
    _task(
        "squad1", "an answer at null", _question(lambda p, q: q["answers"][0].update(answer_start=None)), "answer_start"
    ),
    _task("squad1", "no answer", _question(lambda p, q: q.update(answers=[])), "no answer"),
    _task(
        "squad1", "a question that cannot be answered", _question(lambda p, q: q.update(is_impossible=True)), "squad2"
    ),
    _task("squad1", "an empty question", _question(lambda p, q: q.update(question=" ")), "question", "empty"),
    _task(
        "squad1",
        "a context of 650 kB",
        _question(_long_context),
        status=0,
        flags="--config.batch_size=256",
    ),
    _task(
        "squad2", "an answer to what has none", _question(lambda p, q: q.update(is_impossible=True)), "is_impossible"
    ),
    _task("squad2", "is_impossible a text", _question(lambda p, q: q.update(is_impossible="no")), "is_impossible"),
    # Endings
    _task("swag", "an ending missing", _edit("train.csv", lambda t: t.replace("ending3", "ending9")), "ending3"),
    _task(
        "hellaswag",
        "three endings",
        _object("hellaswag_train.jsonl", lambda o: o["endings"].pop()),
        "line 1",
        "3 endings",
    ),
    _task(
        "hellaswag",
        "an ending that is a number",
        _object("hellaswag_train.jsonl", lambda o: o["endings"].__setitem__(0, 5)),
        "line 1",
        "endings",
    ),
    # Labels of words
    _csv("empty columns", "", "own.conll", task="ner", file="own.conll"),
    _csv("one column", "Anna\nlives\n\n", "line 1", "1 columns", task="ner", file="own.conll"),
    _csv(
        "another number of columns",
        "Anna B-PER\nlives\n\n",
        "line 2",
        "1 columns, expected 2",
        task="ner",
        file="own.conll",
    ),
    _csv(
        "labels that are no entities'",
        "Anna N\nlives V\n\nBoris N\n" * 9,
        "line",
        "tagging",
        task="ner",
        file="own.conll",
    ),
    _csv("nan as an entity", "Anna B-PER\nlives nan\n\n" * 9, "line 2", "'nan'", task="ner", file="own.conll"),
    _csv(
        "an entity in two spellings",
        "Anna B-PER\nBoris B-Per\n\n" * 9,
        "line 2",
        "two classes",
        task="ner",
        file="own.conll",
    ),
    _csv(
        "a column beyond the last",
        "Anna B-PER\nlives O\n\n" * 9,
        "tags_field",
        task="ner",
        file="own.conll",
        flags="--config.tags_field=9",
    ),
    _csv(
        "a column that is no number",
        "Anna B-PER\nlives O\n\n" * 9,
        "tags_field",
        task="ner",
        file="own.conll",
        flags="--config.tags_field=x",
    ),
    _csv(
        "a column of 4,500 digits",
        "Anna B-PER\nlives O\n\n" * 9,
        "tags_field",
        task="ner",
        file="own.conll",
        flags=f"--config.tags_field={DIGITS}",
    ),
    _csv(
        "120 words without an empty line",
        "Anna B-PER\nlives O\n" * 60,
        "its 120 words are one sentence; an empty line",
        task="ner",
        file="own.conll",
    ),
    _csv("one sentence", "Anna B-PER\nlives O\n\n", "heldout_share", task="ner", file="own.conll"),
    _jsonl(
        "words without labels",
        [{"tokens": ["a", "b"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["B-X"]}] * 9,
        "line 1",
        "2 words and 1 labels",
        task="ner",
    ),
    _jsonl(
        "a text in the place of words", [{"tokens": "a b", "tags": ["O", "B-X"]}] * 9, "line 1", "tokens", task="ner"
    ),
    _jsonl(
        "a word with a line's end",
        [{"tokens": ["a\n", "b"], "tags": ["O", "B-X"]}] * 9,
        "line 1",
        "tokens, number 1",
        task="ner",
    ),
    _jsonl(
        "a label that is null",
        [{"tokens": ["a", "b"], "tags": ["O", None]}] * 9,
        "line 1",
        "tags, number 2",
        task="tagging",
    ),
    _jsonl("a label beyond float range", [{"tokens": ["a", "b"], "tags": [1, HUGE]}] * 9, status=0, task="tagging"),
    _jsonl(
        "a sentence of 100,000 words",
        [{"tokens": ["a"] * 100_000, "tags": ["X"] * 100_000}] + [{"tokens": ["b"], "tags": ["Y"]}] * 9,
        status=0,
        task="tagging",
    ),
    # Languages and sentiment
    _task("xnli", "an unknown language", lambda f: None, "config.language", flags="--config.language=xx"),
    _task("xnli", "three languages", lambda f: None, "config.language", flags="--config.language=en:de:fr"),
    _task("xnli", "no training file", lambda f: next(f.rglob("multinli.train*")).unlink(), "xnli"),
    _task(
        "imdb",
        "a review that is not UTF-8",
        lambda f: next(f.rglob("train/pos/*.txt")).write_bytes(b"\xff\xfe"),
        "UTF-8",
    ),
    _task("imdb", "an empty review", lambda f: next(f.rglob("train/pos/*.txt")).write_bytes(b""), "empty"),
    _task("sst5", "no tree", _edit("train.txt", lambda t: "(5 soup)\n" + t), "line 1", "no tree"),
    _task(
        "sst5",
        "a tree 10,000 deep",
        _edit("train.txt", lambda t: "(3 " * 10_000 + "x" + ")" * 10_000 + "\n" + t),
        status=0,
    ),
    # Sweeps
    _sweep("a folder of something else", write("out/report.md", "mine"), "out is not empty", "choose another"),
    _sweep("a workdir of pretraining", lambda here: None, "is a run's", "another --workdir", workdir="$base/run"),
    _sweep("a workdir of fine-tuning", lambda here: None, "is a run's", "another --workdir", workdir="$base/tuned"),
    _sweep("a second task that fails", lambda here: None, "cola", tasks="classification,cola"),
    _sweep("a start twice", lambda here: None, "config.inits", "twice", inits="$base/run,$base/./run"),
    _sweep("a result that is a folder", lambda here: (here / RESULT).mkdir(parents=True), "result.json is a folder"),
    # Settings
    _csv("max_length of 1e9", _table(), "max_length", flags="--config.max_length=1000000000"),
    _csv("batch_size of 1e18", _table(), "batch_size", flags="--config.batch_size=1000000000000000000"),
    _csv("epochs of 2^31", _table(), "epochs", flags="--config.epochs=2147483648"),
    _csv("learning_rate infinite", _table(), "learning_rate", flags="--config.learning_rate=inf"),
    _csv("a start that is no run", _table(), "config.init", flags="--config.init=$here"),
    _csv("a start that is gone", _table(), "config.init", flags="--config.init=$here/none"),
    _csv("a workdir of pretraining", _table(), "pretraining", flags="--workdir=$base/run"),
    *(
        _damaged(task, file, seed)
        for task, file in (
            ("sst2", "train.tsv"),
            ("boolq", "train.jsonl"),
            ("squad1", "train-v1.1.json"),
            ("classification", "train.csv"),
            ("ner", "train.txt"),
        )
        for seed in range(8)
    ),
]
