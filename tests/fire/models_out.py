"""Models that go out: export, predictions, evaluation, probes and compiling, of runs and files that are damaged."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests import helpers
from tests.fire.case import EITHER, Case, damage, special, write

EXPORT = "sctd_jax.interop.huggingface export --workdir {} --out $here/out"
Change = Callable[[Path], Any]  # of the copied workdir


def _copy(of: str, change: Change) -> Callable[[Path, Path], None]:
    """A copy of the shared `run` or `tuned`, changed."""

    def make(here: Path, base: Path) -> None:
        change(Path(shutil.copytree(base / of, here / "run")))

    return make


def _gone(file: str) -> Change:
    return lambda folder: shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()


def _folder(file: str) -> Change:
    return lambda folder: (_gone(file)(folder), (folder / file).mkdir())


def _set(file: str, *path: str, value: Any) -> Change:
    """Change one field of a JSON file."""

    def change(folder: Path) -> None:
        content = found = json.loads((folder / file).read_text())
        for name in path[:-1]:
            found = found[name]
        found[path[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return change


def _bytes(seed: int) -> Change:
    """One file of the newest checkpoint, damaged."""

    def change(newest: Path) -> None:
        files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
        damage(random.Random(seed).choice(files), seed)

    return _newest(change)


def _exchanged(folder: Path) -> None:
    """Another tokenizer of as many pieces: the ordinary ones have other ids."""
    model = ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    pieces = [(piece.piece, piece.score) for piece in model.pieces[10:]]
    for piece, (text, score) in zip(model.pieces[10:], pieces[100:] + pieces[:100], strict=True):
        piece.piece, piece.score = text, score
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def _newest(change: Change) -> Change:
    """Change the newest checkpoint's folder."""
    return lambda folder: change(max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)))


DEEP = "[" * 20_000 + "]" * 20_000
# Name -> damage to a pretraining; what is expected of all commands that read it is one line.
RUNS: dict[str, Change] = {
    "config.json is missing": _gone("config.json"),
    "config.json is a folder": _folder("config.json"),
    **{f"config.json is {what}": write("config.json", content) for what, content in {
        "empty": "", "a list": "[1]", "null": "null", "half": '{"model": {', "nested deep": DEEP,
        "no UTF-8": b"\xff\xfe{}", "zeros": bytes(100),
    }.items()},
    "config.json: a section is a number": _set("config.json", "model", value=7),
    "config.json: begun later": _set("config.json", "begun", value=10**6),
    "config.json: a field twice": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"num_heads"', '"num_heads": 2, "num_heads"')
    ),
    "config.json: an unknown field": _set("config.json", "model", "colour", value="red"),
    "config.json: a later format": _set("config.json", "format", value=10**6),
    "config.json: hidden_size is a text": _set("config.json", "model", "hidden_size", value="32"),
    "config.json: hidden_size 10^12": _set("config.json", "model", "hidden_size", value=10**12),
    "config.json: another network": _set("config.json", "model", "hidden_size", value=64),
    "config.json: a million layers": _set("config.json", "model", "num_layers", value=10**6),
    "config.json: two layers": _set("config.json", "model", "num_layers", value=2),
    "config.json: vocab_size 511": _set("config.json", "model", "vocab_size", value=511),
    "the tokenizer is missing": _gone("tokenizer.model"),
    "the tokenizer is empty": write("tokenizer.model", ""),
    "the tokenizer is text": write("tokenizer.model", "text " * 100),
    "the tokenizer is a folder": _folder("tokenizer.model"),
    "prepared.json is missing": _gone("prepared.json"),
    "the tokenizer is another one": _exchanged,
    "prepared.json is half": write("prepared.json", '{"rows": 1,'),
    "no checkpoints": _gone("checkpoints"),
    "checkpoints is empty": _folder("checkpoints"),
    "checkpoints is a file": lambda folder: (_gone("checkpoints")(folder), write("checkpoints", "x")(folder)),
}  # fmt: skip
CHECKPOINTS: dict[str, Change] = {
    "the checkpoint is empty": _newest(lambda step: (shutil.rmtree(step), step.mkdir())),
    "the checkpoint is a file": _newest(lambda step: (shutil.rmtree(step), step.write_text("x"))),
    "the checkpoint has no state": _newest(lambda step: shutil.rmtree(step / "state")),
    "the checkpoint has no state but a file": _newest(
        lambda step: (shutil.rmtree(step / "state"), (step / "state").write_text("x"))
    ),
    "the checkpoint's metadata are empty": _newest(write("state/_METADATA", "")),
    "the checkpoint's metadata are a list": _newest(write("state/_METADATA", "[]")),
    "the checkpoint's metadata are nested deep": _newest(write("state/_METADATA", DEEP)),
    "the checkpoint is called by another step": _newest(lambda step: step.rename(step.with_name("7"))),
    "the checkpoint of step 10^30": lambda folder: (folder / "checkpoints" / str(10**30)).mkdir(),
}


def _exported(name: str, make, *words: str, status: int | tuple[int, ...] = 2, of: str = "$here/run", flags: str = ""):
    new = () if status == 2 else ("out", "out/*")
    return Case(f"export: {name}", f"{EXPORT.format(of)} {flags}", make, status, words, new)


def _flags(flags: str, *words: str, status: int | tuple[int, ...] = 2, of: str = "$base/run", env=None) -> Case:
    new = () if status == 2 else ("out", "out/*")
    return Case(
        f"export {flags:.60}", f"{EXPORT.format(of)} {flags}", status=status, words=words, new=new, env=env or {}
    )


def _nothing(here: Path, base: Path) -> None:
    pass


def _to(out: str, *words: str, make=_nothing, status: int = 2, flags: str = "") -> Case:
    """Export to an odd place."""
    command = f"sctd_jax.interop.huggingface export --workdir $base/run --out {out} {flags}"
    return Case(f"export to {out:.50} {flags}".strip(), command, make, status, words, ("*",) if not status else ())


def _files(*names: str) -> Callable[[Path, Path], None]:
    def make(here: Path, base: Path) -> None:
        for name in names:
            (here / "out").mkdir(exist_ok=True)
            (here / "out" / name).write_text("mine")

    return make


EXPORTS = [
    Case("export among the checkpoints", "sctd_jax.interop.huggingface export --workdir $here/run --out "
         "$here/run/checkpoints/9", _copy("run", lambda folder: None), words=("among the checkpoints",)),
    _exported("nothing wrong", _copy("run", lambda folder: None), "exported step 6", status=0),
    _exported("a fine-tuned one", _copy("tuned", lambda folder: None), "exported step 2", status=0),
    *(_exported(name, _copy("run", change)) for name, change in RUNS.items()),
    *(_exported(name, _copy("run", change), status=EITHER) for name, change in CHECKPOINTS.items()),
    *(_exported(f"bytes of the checkpoint, {seed}", _copy("run", _bytes(seed)), status=EITHER) for seed in range(9)),
    _exported("no workdir", _nothing, "run", "config.json"),
    _exported("an empty workdir", lambda here, base: (here / "run").mkdir(), "config.json"),
    _exported("a file as workdir", lambda here, base: (here / "run").write_text("x"), "run"),
    _exported("workdir ''", _nothing, "--workdir", of="''"),
    _exported("rows as workdir", _nothing, "rows", of="$base/rows"),
    _exported("an export as workdir", _nothing, "exported", of="$base/exported"),
    _exported("a scheme as workdir", _nothing, "s3://", of="s3://bucket/run"),
    _exported("command.txt is missing", _copy("run", _gone("command.txt")), status=0),
    _exported("command.txt is no UTF-8", _copy("run", write("command.txt", b"\xff\xfe`")), status=0),
    _exported("config.json is a pipe", _copy("run", special("config.json")), "config.json is a pipe"),
    _exported("config.json is /dev/zero", _copy("run", special("config.json", "/dev/zero")), "is a device"),
    _exported("config.json is of 2 GB", _copy("run", lambda run: os.truncate(run / "config.json", 1 << 31)), "bytes"),
    _exported("task.json is a pipe", _copy("tuned", special("task.json")), "task.json is a pipe"),
    _exported("command.txt is a pipe", _copy("run", special("command.txt")), status=0),
    _exported("command.txt is a folder", _copy("run", _folder("command.txt")), status=0),
    _exported("metrics.jsonl is damaged", _copy("run", write("metrics.jsonl", "[1]\n{\n")), "damaged", status=0),
    _exported("metrics.jsonl is a folder", _copy("run", _folder("metrics.jsonl")), "metrics.jsonl"),
    _exported("a fine-tuned one with another tokenizer", _copy("tuned", _exchanged), "tokenizer.model"),
    _exported("task.json is empty", _copy("tuned", write("task.json", "")), "task.json"),
    _exported("task.json is a list", _copy("tuned", write("task.json", "[]")), "task.json"),
    _exported("task.json is missing", _copy("tuned", _gone("task.json"))),
    _exported("task.json: no such task", _copy("tuned", _set("task.json", "task", value="x")), "task.json"),
    _exported("task.json: a task that is a list", _copy("tuned", _set("task.json", "task", value=[])), "task.json"),
    _exported("task.json: another task", _copy("tuned", _set("task.json", "task", value="squad"))),
    _exported("task.json: no labels", _copy("tuned", _set("task.json", "labels", value=[])), "task.json"),
    _exported("task.json: three labels", _copy("tuned", _set("task.json", "labels", value=["a", "b", "c"]))),
    _exported("task.json: labels twice", _copy("tuned", _set("task.json", "labels", value=["a", "a"])), "task.json"),
    _exported("task.json: labels of numbers", _copy("tuned", _set("task.json", "labels", value=[1, 2])), "task.json"),
    _exported("task.json in a pretraining", _copy("run", write("task.json", "{}")), "task.json"),
    _flags("--step=-1", "--step"), _flags("--step=x", "--step"), _flags("--step=nan", "--step"),
    _flags("--step=99", "99"), _flags("--step=1000000000000000000000000000000", "step"),
    _flags("--step=３", "--step"), _flags("--step", "--step"), _flags("--step=", "--step"),
    _flags("--dtype=float8", "--dtype"), _flags("--dtype=", "--dtype"), _flags("--dtype=float16", status=0),
    _flags("--max-shard-size=0GB", "--max-shard-size"), _flags("--max-shard-size=5", "--max-shard-size"),
    _flags("--max-shard-size=-5GB", "--max-shard-size"), _flags("--max-shard-size=1e9GB", "--max-shard-size"),
    _flags(f"--max-shard-size={'9' * 5000}GB", "--max-shard-size"),
    _flags("--max-shard-size=1KB", status=0),
    _flags("--license='a\nb: c'", "--license"), _flags("--language='en\n- x'", "--language"),
    _flags("--dataset='x: [y'", "--dataset"), _flags("--base-model=''", "--base-model"),
    _flags("--private", "--private"), _flags("more", "more"), _flags("--stepp=3", "--stepp"),
    _flags("--push=x", "--push"), _flags("--push=''", "--push"), _flags("--push=a/b/c", "--push"),
    _flags("--push='a b/c'", "--push"), _flags("--push=https://huggingface.co/a/b", "--push"),
    _flags("--push=../../etc", "--push"), _flags("--push=a/b", env={"HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}),
    _flags("--push=a/b", env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x"}, status=(2, 75)),
    _to("''", "--out"), _to("$here/out", "--force", make=_files("README.md")),
    _to("$here/out", "just an export", flags="--force", make=_files("README.md", "thesis.tex")),
    _to("$here/out", "just an export", flags="--force", make=_files("x")),
    _to("$here/file", "file", flags="--force", make=lambda here, base: (here / "file").write_text("mine")),
    _to("$here/file/out", "file", make=lambda here, base: (here / "file").write_text("mine")),
    _to("$here/empty", "empty", make=lambda here, base: (here / "empty").mkdir()),
    _to("/proc/out", "/proc/out"), _to("gs://bucket/out", "--out"), _to(f"$here/{'n' * 300}", "nnn"),
    _to("/", "--force"), _to("/", flags="--force"), _to("$base/run", flags="--force"),
    _to("'$here/a b/c$d'", status=0), _to("'$here/a\nb'", status=0), _to("$here/a/b/c", status=0),
]  # fmt: skip


PREDICT = "sctd_jax.main --mode=predict --config.init={} --config.data_dir=$here/{} --out={} {}"
TEXTS = "text\nsoup is good\nbread is bad\n"


def _predicted(
    name: str, content: str | bytes, *words: str, status=2, file="in.csv", init="$base/tuned",
    out="$here/out.jsonl", flags: str = "", make: Callable[[Path, Path], Any] = _nothing,
) -> Case:  # fmt: skip
    def both(here: Path, base: Path) -> None:
        (here / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        make(here, base)

    new = () if status == 2 else ("out.*",)
    return Case(f"predict: {name}", PREDICT.format(init, file, out, flags), both, status, words, new)


PREDICTIONS = [
    _predicted("nothing wrong", TEXTS, "2 rows", status=0),
    _predicted("as a table", TEXTS, "2 rows", status=0, out="$here/out.csv"),
    _predicted("another tokenizer", TEXTS, "tokenizer.model", init="$here/run",
               make=lambda here, base: _copy("tuned", _exchanged)(here, base)),
    _predicted("labels twice", TEXTS, "task.json", "stands twice", init="$here/run",
               make=lambda here, base: _copy("tuned", lambda run: (run / "task.json").write_text(
                   (run / "task.json").read_text().replace("{", '{"labels": ["yes", "no"],', 1)))(here, base)),
    _predicted("empty", "", "in.csv"), _predicted("a header alone", "text\n", "no rows"),
    _predicted("white space", " \n \n", "in.csv"),
    _predicted("no such column", "words\na\n", "line 2", "text_field"),
    _predicted("a column twice", "text,text\na,b\n", "twice"),
    _predicted("columns too many", "text\na,b\n", "line 2"),
    _predicted("an open quote", 'text\n"soup\n', "line 2"),
    _predicted("binary", bytes(range(256)) * 100, "in.csv"), _predicted("zeros", bytes(10_000), "in.csv"),
    _predicted("no UTF-8", b"text\n\xff\xfe soup\n", "in.csv"),
    _predicted("UTF-16", TEXTS.encode("utf-16"), "in.csv"),
    _predicted("a field of 2 MB", "text\n" + "soup " * 400_000 + "\n", status=EITHER),
    _predicted("one word of 2 MB", "text\n" + "s" * 2_000_000 + "\n", status=EITHER),
    _predicted("100,000 columns", ",".join(f"c{i}" for i in range(100_000)) + "\n", "in.csv"),
    _predicted("100,000 columns and a row", ",".join(f"c{i}" for i in range(100_000)) + "\n" + "a," * 99_999 + "a\n",
               "text_field"),
    _predicted("another suffix", TEXTS, "in.xlsx", file="in.xlsx"),
    _predicted("no suffix", TEXTS, "file", file="file"),
    _predicted("compressed", b"\x1f\x8b" + bytes(100), "in.csv.gz", file="in.csv.gz"),
    _predicted("JSON lines of numbers", "1\n2\n", "line 1", file="in.jsonl"),
    _predicted("JSON lines cut", '{"text": "a"}\n{"text": ', "line 2", file="in.jsonl"),
    _predicted("JSON lines, a text that is a number", '{"text": 5}\n', file="in.jsonl", status=EITHER),
    _predicted("JSON lines, a text that is null", '{"text": null}\n', "line 1", file="in.jsonl"),
    _predicted("JSON lines nested deep", '{"text": ' + DEEP + "}\n", "line 1", file="in.jsonl"),
    _predicted("JSON lines, 5,000 digits", '{"text": ' + "9" * 5000 + "}\n", "line 1", file="in.jsonl"),
    _predicted("JSON lines, half a surrogate", '{"text": "\\ud800"}\n', "line 1", file="in.jsonl"),
    _predicted("damage after 5,000 rows", "text\n" + "a\n" * 5000 + "a,b\n", "line 5002"),
    _predicted("no file", TEXTS, "none.csv", flags="--config.data_dir=$here/none.csv"),
    _predicted("a folder", TEXTS, "folder.csv", flags="--config.data_dir=$here/folder.csv",
               make=lambda here, base: (here / "folder.csv").mkdir()),
    _predicted("a pipe", TEXTS, "a.csv is a pipe", flags="--config.data_dir=$here/a.csv",
               make=lambda here, base: special("a.csv")(here)),
    _predicted("an endless device", TEXTS, "is a device", flags="--config.data_dir=$here/a.jsonl",
               make=lambda here, base: special("a.jsonl", "/dev/zero")(here)),
    _predicted("a line of 300 MB", TEXTS, "line 1", "268 MB", flags="--config.data_dir=$here/a.jsonl",
               make=lambda here, base: ((here / "a.jsonl").touch(), os.truncate(here / "a.jsonl", 300_000_000))),
    _predicted("no data_dir", TEXTS, "data_dir", flags="--config.data_dir="),
    _predicted("no init", TEXTS, "config.init", init=""),
    _predicted("init that is not there", TEXTS, "none", init="$here/none"),
    _predicted("init that is no run", TEXTS, "rows", init="$base/rows"),
    _predicted("init that is a pretraining", TEXTS, "fine-tun", init="$base/run"),
    _predicted("init that is an export", TEXTS, "exported", init="$base/exported"),
    _predicted("init that is a file", TEXTS, "text.txt", init="$base/text.txt"),
    _predicted("init of the hub", TEXTS, "hf:a/b", init="hf:a/b"),
    _predicted("init of another scheme", TEXTS, "s3://", init="s3://a/b"),
    _predicted("another text_field", TEXTS, "text_field", flags="--config.text_field=words"),
    _predicted("a pair_field", TEXTS, "pair_field", flags="--config.pair_field=words"),
    _predicted("dtype", TEXTS, "config.dtype", flags="--config.dtype=float64"),
    *(_predicted(f"batch_size {size}", TEXTS, "batch", flags=f"--config.batch_size={size}")
      for size in (0, -1, "x", 1.5, 10**9, 10**18, 10**30, "nan", "")),
    *(_predicted(f"mesh.{axis} {size}", TEXTS, "config.mesh",
                 flags=f"--config.mesh.{axis}={size}")
      for axis, size in (("data", 0), ("data", -5), ("data", 64), ("fsdp", 10**12), ("tensor", 3), ("tensor", "x"))),
    _predicted("out that is there", TEXTS, "--out", make=lambda here, base: (here / "out.jsonl").write_text("mine")),
    _predicted("out that is a folder", TEXTS, "--out", make=lambda here, base: (here / "out.jsonl").mkdir()),
    _predicted("no out", TEXTS, "--out", out=""),
    _predicted("out of another suffix", TEXTS, "--out", out="$here/o.txt"),
    _predicted("out without a suffix", TEXTS, "--out", out="$here/out"),
    _predicted("out as columns", TEXTS, "--out", out="$here/out.conll"),
    _predicted("out in a file", TEXTS, "--out", out="$here/in.csv/out.jsonl"),
    _predicted("out nobody may write", TEXTS, "/proc/out.jsonl", out="/proc/out.jsonl", status=(2, 75)),
    _predicted("out of a long name", TEXTS, "--out", out=f"$here/{'n' * 300}.jsonl", status=(2, 75)),
    _predicted("a workdir", TEXTS, "--workdir", flags="--workdir=$here/run"),
    _predicted("a field of fine-tuning", TEXTS, "config.epochs", flags="--config.epochs=3"),
]  # fmt: skip


def _tuned(name: str, change: Change, *words: str, status=2) -> Case:
    """Predictions of a damaged fine-tuning."""

    def make(here: Path, base: Path) -> None:
        _copy("tuned", change)(here, base)
        (here / "in.csv").write_text(TEXTS)

    command = PREDICT.format("$here/run", "in.csv", "$here/out.jsonl", "")
    return Case(f"predict by a run, {name}", command, make, status, words, () if status == 2 else ("out.jsonl",))


TUNED = [
    _tuned("task.json is empty", write("task.json", ""), "task.json"),
    _tuned("task.json is missing", _gone("task.json"), "task.json"),
    _tuned("task.json is nested deep", write("task.json", DEEP), "task.json"),
    _tuned("task.json: a field is missing", write("task.json", "{}"), "task.json"),
    _tuned("task.json: max_length 0", _set("task.json", "max_length", value=0), "max_length"),
    _tuned("task.json: max_length 10^9", _set("task.json", "max_length", value=10**9), "max_length"),
    _tuned("task.json: three labels", _set("task.json", "labels", value=["a", "b", "c"])),
    _tuned("task.json: one label", _set("task.json", "labels", value=["a"])),
    _tuned("task.json: another task", _set("task.json", "task", value="sts-b")),
    _tuned("task.json: labels no terminal shows", _set("task.json", "labels", value=["\x1b[31m", "b"]), status=EITHER),
    _tuned("config.json is half", write("config.json", '{"model": {'), "config.json"),
    _tuned("config.json: another network", _set("config.json", "model", "hidden_size", value=64)),
    _tuned("no checkpoints", _gone("checkpoints"), "checkpoint"),
    _tuned("the tokenizer is missing", _gone("tokenizer.model"), "tokenizer"),
    *(_tuned(f"bytes of the checkpoint, {seed}", _bytes(seed), status=EITHER) for seed in range(6)),
]


EVAL = "sctd_jax.main --mode=eval --config=tests/small.py --config.data.rows=$base/rows --workdir={} "
EVAL += "--config.dropping.method=full --config.model.num_layers=1 {}"


def _evaluated(name: str, change: Change, *words: str, flags: str = "", of: str = "run", status=2) -> Case:
    command = EVAL.format("$here/run", flags)
    return Case(f"eval: {name}", command, _copy(of, change), status, words)


EVALUATIONS = [
    # Its tokenizer is that of the rows.
    *(_evaluated(name, change, status=0 if "tokenizer" in name else 2) for name, change in list(RUNS.items())[::3]),
    Case("eval: no workdir", EVAL.format("$here/none", ""), words=("none",)),
    Case("eval: a file as workdir", EVAL.format("$base/text.txt", ""), words=("text.txt",)),
    Case(
        "eval: an empty workdir",
        EVAL.format("$here/run", ""),
        lambda here, base: (here / "run").mkdir(),
        words=("run",),
    ),
    Case("eval: an export as workdir", EVAL.format("$base/exported", ""), words=("exported",)),
    _evaluated("of a fine-tuning", lambda folder: None, of="tuned"),
    _evaluated("another network", lambda folder: None, "model.num_layers", flags="--config.model.num_layers=2"),
    _evaluated("rows that are not there", lambda folder: None, "none", flags="--config.data.rows=$here/none"),
    _evaluated("eval_rows 0", lambda folder: None, "train.eval_rows", flags="--config.train.eval_rows=0"),
    _evaluated(
        "eval_rows 10^12", lambda folder: None, "train.eval_rows", flags="--config.train.eval_rows=1000000000000"
    ),
    _evaluated("rows.json of other rows", write("rows.json", "{}")),
    _evaluated("rows.json is half", write("rows.json", "{")),
]


def _probe(name: str, rest: str, *words: str, make=_nothing, status: int | tuple[int, ...] = 2) -> Case:
    new = () if status == 2 else ("out*",)
    return Case(f"probe {name}", f"sctd_jax.probe {rest}", make, status, words, new)


OUT = "--out $here/out"
PROBES = [
    _probe("of nothing", ""), _probe("unknown", "depth $base/run"), _probe("without a model", "drift", "RUN"),
    _probe("drift of no run", f"drift $here/none {OUT}", "none"),
    _probe("drift of a file", f"drift $base/text.txt {OUT}", "text.txt"),
    _probe("drift of rows", f"drift $base/rows {OUT}", "rows"),
    _probe("drift of an export", f"drift $base/exported {OUT}", "exported"),
    _probe("drift of a fine-tuning", f"drift $base/tuned {OUT}", "tuned"),
    _probe("drift of a full run", f"drift $base/run {OUT}", "run"),
    _probe("drift --rows -1", f"drift $base/run --rows=-1 {OUT}", "--rows"),
    _probe("drift --rows 10^30", f"drift $base/run --rows={10**30} {OUT}", "--rows"),
    _probe("perplexity of nothing there", f"perplexity $here/none {OUT}", "none"),
    _probe("perplexity --rows 0", f"perplexity $base/run --rows=0 {OUT}", "--rows"),
    _probe("perplexity --batch-size 10^12", f"perplexity $base/run --batch-size={10**12} {OUT}", "--batch-size"),
    _probe("perplexity --batch-size 2*10^9", f"perplexity $base/run --batch-size={2 * 10**9} {OUT}", "batch size"),
    _probe("perplexity of no text", f"perplexity $base/run --text $here/none.txt {OUT}", "none.txt"),
    _probe("perplexity of an empty text", f"perplexity $base/run --text $here/a.txt {OUT}", "a.txt",
           make=lambda here, base: (here / "a.txt").write_text("")),
    _probe("perplexity of bytes", f"perplexity $base/run --text $here/a.txt {OUT}", "a.txt",
           make=lambda here, base: (here / "a.txt").write_bytes(b"\xff\xfe\x00" * 99)),
    _probe("perplexity of a pipe", f"perplexity $base/run --text $here/a.txt {OUT}", "a.txt is a pipe", "--text",
           make=lambda here, base: special("a.txt")(here)),
    _probe("perplexity of a folder", f"perplexity $base/run --text $here {OUT}", "--text"),
    *(_probe(f"perplexity by a run, {name}", f"perplexity $here/run {OUT}", make=_copy("run", change))
      for name, change in list(RUNS.items())[::5]),
    _probe("layers without a task", f"layers $base/run --data-dir $base {OUT}", "--task"),
    _probe("layers of no task", f"layers $base/run --task x --data-dir $base {OUT}", "x"),
    _probe("layers of squad", f"layers $base/run --task squad --data-dir $base {OUT}", "squad"),
    _probe("layers of nothing there",
           f"layers $base/run --task classification --data-dir $here/none.csv {OUT}", "none"),
    _probe("layers of another field",
           f"layers $base/run --task classification --data-dir $base/own.csv --label-field=x {OUT}", "x"),
    _probe("layers --max-length 10^12",
           f"layers $base/run --task classification --data-dir $base/own.csv --max-length={10**12} {OUT}",
           "--max-length"),
    _probe("layers --batch-size 2*10^9",
           f"layers $base/run --task classification --data-dir $base/own.csv --batch-size={2 * 10**9} {OUT}",
           "batch size"),
    _probe("layers --seed 10^30",
           f"layers $base/run --task classification --data-dir $base/own.csv --seed={10**30} {OUT}", "--seed"),
    _probe("layers --heldout-share 1", f"layers $base/run --task sst2 --data-dir $base --heldout-share=1 {OUT}",
           "--heldout-share"),
    _probe("to a file", "drift $base/run --out $here/file", "--out",
           make=lambda here, base: (here / "file").write_text("mine")),
    _probe("to nobody's disk", "drift $base/run --out /proc/x", "/proc/x"),
    _probe("to a bucket", "drift $base/run --out gs://bucket/x", "--out"),
    _probe("to nothing", "drift $base/run --out ''", "--out"),
]  # fmt: skip


LIBTPU = helpers.ROOT / ".venv-tpu" / "libtpu" / "libtpu.so"  # made by `make tpu`


def _compiled(flags: str, *words: str) -> Case:
    command = f"sctd_jax.main --mode=compile --config=tests/small.py {flags}"
    words = words if LIBTPU.is_file() else ()  # the line may be that it is missing
    return Case(f"compile {flags:.70}", command, words=words, env={"TPU_LIBRARY_PATH": str(LIBTPU)})


COMPILED = [
    _compiled("", "--topology"), _compiled("--topology=", "--topology"), _compiled("--topology=x", "--topology"),
    _compiled("--topology=v5e", "--topology"), _compiled("--topology=v5e:", "--topology"),
    _compiled("--topology=v5e:0x4", "--topology"), _compiled("--topology=v5e:-1x4", "--topology"),
    _compiled("--topology=v5e:3x5", "--topology"), _compiled("--topology=v5e:1000000x1000000", "--topology"),
    _compiled("--topology=v5e:99999999999999999999x4", "--topology"), _compiled("--topology=v99:2x4", "--topology"),
    _compiled("--topology='v5e:2x4 '", "--topology"), _compiled("--topology=../v5e:2x4", "--topology"),
    _compiled("--topology=v5e:２x4", "--topology"), _compiled("--topology='v5e:2x4\nv5e:2x4'", "--topology"),
    _compiled(f"--topology={'9' * 5000}", "--topology"),
    _compiled("--topology=v5e:2x4 --mfu=0", "mfu"), _compiled("--topology=v5e:2x4 --mfu=nan", "mfu"),
    _compiled("--topology=v5e:2x4 --mfu=2", "mfu"), _compiled("--topology=v5e:2x4 --mfu=x", "mfu"),
    _compiled("--topology=v5e:2x4 --config.mesh.data=3", "mesh"),
    _compiled("--topology=v5e:2x4 --config.mesh.data=0", "config.mesh.data"),
    _compiled("--topology=v5e:2x4 --config.mesh.fsdp=1000000000000", "config.mesh.fsdp"),
    _compiled("--topology=v5e:2x4 --config.mesh.tensor=8", "mesh.tensor"),
    _compiled("--topology=v5e:2x4 --config.train.batch_size=7", "batch_size"),
    _compiled("--topology=v5e:2x4 --largest_batch=maybe", "largest_batch"),
    Case("a topology for a training",
         "sctd_jax.main --config=tests/small.py --topology=v5e:2x4", words=("--topology",)),
]  # fmt: skip

CASES = [*EXPORTS, *PREDICTIONS, *TUNED, *EVALUATIONS, *PROBES, *COMPILED]
