"""Curves, pages and damaged metrics: `python -m sctd_jax.plot` and `report`, and a run that goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fire.case import Case, special, write

_TRAIN = "sctd_jax.main --config=tests/small.py --config.data.rows=$base/rows --config.dropping.method=full"
_TRAIN += " --config.model.num_layers=1 --workdir=$here/run --config.train.steps=7"
_OUT = "--out $here/out.png"


def _run(named: str = "run", metrics: Callable[[bytes], bytes] = lambda data: data) -> Callable[[Path, Path], None]:
    """A copy of the run, by another name or with other metrics."""

    def make(here: Path, base: Path) -> None:
        shutil.copytree(base / "run", here / named)
        path = here / named / "metrics.jsonl"
        path.write_bytes(metrics(path.read_bytes()))

    return make


def _special(device: str = "", name: str = "metrics.jsonl") -> Callable[[Path, Path], None]:
    """A copy of the run whose metrics, or another file, are a pipe or a device."""
    return lambda here, base: special(name, device)(Path(shutil.copytree(base / "run", here / "run")))


def _with(name: str, put: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    """A copy of the run in which one file or folder is replaced."""

    def make(here: Path, base: Path) -> None:
        path = Path(shutil.copytree(base / "run", here / "run"), name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        put(path)

    return make


def _line(text: str | bytes) -> Callable[[bytes], bytes]:
    """Metrics with a line more in their middle."""

    def damage(data: bytes) -> bytes:
        first, rest = data.split(b"\n", 1)
        return first + b"\n" + (text.encode() if isinstance(text, str) else text) + b"\n" + rest

    return damage


_OVER = [
    Case("a text named as a picture", "sctd_jax.plot $base/run --out $here/x.pdf",
         lambda here, base: (here / "x.pdf").write_text("mine"), words=("x.pdf is there", "no picture")),
    Case("pictures of another", "sctd_jax.probe perplexity $base/run --rows 2 --out $here/probes",
         words=("perplexity.json is there",),
         make=lambda here, base: write("probes/perplexity.json", '{"mine": 1}')(here)),
    *(Case(f"{name} that is {what}", _TRAIN, make, words=(name, "move it away")) for name, what, make in (
        ("tensorboard", "a file", _with("tensorboard", lambda path: path.write_text("x"))),
        ("tensorboard", "a link to nowhere", _with("tensorboard", lambda path: path.symlink_to("nowhere"))),
        ("metrics.jsonl", "a link to nowhere", _with("metrics.jsonl", lambda path: path.symlink_to("nowhere"))))),
]  # fmt: skip
_LINES = {
    "a list": "[1]",
    "a number": "7",
    "null": "null",
    "a text": '"step"',
    "no object at all": "step 7",
    "no seconds": '{"step": 4, "train/loss": 1.0}',
    "seconds of null": '{"step": 4, "seconds": null}',
    "a step of null": '{"step": null, "seconds": 1.0}',
    "a step of text": '{"step": "4", "seconds": 1.0}',
    "a step of half": '{"step": 4.5, "seconds": 1.0}',
    "a step of true": '{"step": true, "seconds": 1.0}',
    "a value of text": '{"step": 4, "seconds": 1.0, "train/loss": "low"}',
    "a value of a list": '{"step": 4, "seconds": 1.0, "train/loss": [1]}',
    "a value of 4,500 digits": f'{{"step": 4, "seconds": 1.0, "train/loss": {"9" * 4500}}}',
    "a value beyond floats": f'{{"step": 4, "seconds": 1.0, "train/loss": {"9" * 400}}}',
    "a step beyond 64 bits": '{"step": 99999999999999999999, "seconds": 1.0, "train/loss": 1.0}',
    "a negative step": '{"step": -4, "seconds": 1.0, "train/loss": 1.0}',
    "NaN": '{"step": 4, "seconds": NaN, "train/loss": NaN}',
    "infinity": '{"step": 4, "seconds": Infinity, "train/loss": -Infinity}',
    "lists 100,000 deep": "[" * 100_000,
    "a million letters": '"' + "x" * 10**6,
    "half a line": '{"step": 4, "sec',
    "bytes that are no UTF-8": b'{"step": 4, "seconds": 1.0, "\xff\xfe": 1.0}',
    "zeros": b"\0" * 5000,
}
_WARNED = ("damaged",)
# Numbers as Python reads them: drawn as far as they can be.
_FINE = ("a negative step", "NaN", "infinity", "a step beyond 64 bits", "a value beyond floats")

CASES = [
    *_OVER,
    *(
        Case(f"{name} in the metrics, drawn", f"sctd_jax.plot $here/run {_OUT}", _run(metrics=_line(line)), status=0,
             words=() if name in _FINE else _WARNED, new=("out.png",))
        for name, line in _LINES.items()
    ),
    *(
        Case(f"{name} in the metrics, on a page", "sctd_jax.report $here/run --out $here/out.html",
             _run(metrics=_line(line)), status=0,
             words=() if name in _FINE else _WARNED, new=("out.html",))
        for name, line in _LINES.items()
    ),
    *(
        Case(f"{name} in the metrics, trained on", _TRAIN, _run(metrics=_line(_LINES[name])), status=0, words=_WARNED,
             new=("run*",))
        for name in ("a list", "a step of null", "no seconds", "a value of text", "lists 100,000 deep")
    ),
    Case("metrics that are a pipe, drawn", f"sctd_jax.plot $here/run {_OUT}", _special(), words=("is a pipe",)),
    Case("metrics that are /dev/zero, on a page", "sctd_jax.report $here/run --out $here/out.html",
         _special("/dev/zero"), words=("is a device",)),
    Case("metrics that are a pipe, trained on", _TRAIN, _special(), words=("is a pipe",)),
    Case("a lease that is a pipe, trained on", _TRAIN, _special(name=".lease"), words=(".lease is a pipe",)),
    Case("empty metrics", f"sctd_jax.plot $here/run {_OUT}", _run(metrics=lambda data: b""), words=("run",)),
    Case("no metrics", f"sctd_jax.plot $here {_OUT}", words=("metrics.jsonl",)),
    Case("a folder that is not there", f"sctd_jax.plot $here/nowhere {_OUT}", words=("nowhere",)),
    Case("a run named twice", f"sctd_jax.plot $base/run $base/run {_OUT}", words=("twice",)),
    Case("a workdir with mathematics in its name", f"sctd_jax.plot '$here/a$$b^{{c' {_OUT}", _run("a$b^{c"), status=0,
         new=("out.png",)),
    Case("a workdir that begins with _", f"sctd_jax.plot $here/_run {_OUT}", _run("_run"), status=0, new=("out.png",)),
    Case("a workdir with a line break", f"sctd_jax.plot '$here/a\nb' {_OUT}", _run("a\nb"), status=0, new=("out.png",)),
    Case("a workdir in Chinese", f"sctd_jax.plot $here/语料 {_OUT}", _run("语料"), status=0, new=("out.png",)),
    Case("a workdir that is no UTF-8", f"sctd_jax.plot $here/a\udcffb {_OUT}", _run("a\udcffb"), status=0,
         new=("out.png",)),
    Case("a picture into a folder", "sctd_jax.plot $base/run --out $here", words=("--out",)),
    Case("a picture of no format", "sctd_jax.plot $base/run --out $here/x.docx", words=("x.docx",)),
    Case("a picture without a suffix", "sctd_jax.plot $base/run --out $here/x", words=("--out",)),
    Case("a picture where no folder is", "sctd_jax.plot $base/run --out $here/no/x.png", words=("x.png",)),
    Case("an empty --out", "sctd_jax.plot $base/run --out ''", words=("--out",)),
    Case("a picture in a bucket", "sctd_jax.plot $base/run --out gs://bucket/x.png", words=("--out",)),
    Case("a picture to nobody's disk", "sctd_jax.plot $base/run --out /proc/x.png", words=("/proc/x.png",)),
    *(Case(f"--ymax {value}", f"sctd_jax.plot $base/run --out $here/x.png --ymax={value}", words=("--ymax",))
      for value in ("nan", "x", "-1", "-inf")),
    Case("a page into a folder", "sctd_jax.report $base/run --out $here", words=("--out",)),
    Case("a page over a pipe", "sctd_jax.report $base/run --out $here/x.html",
         lambda here, base: special("x.html")(here), words=("--out",)),
    Case("a picture over a pipe", "sctd_jax.plot $base/run --out $here/x.png",
         lambda here, base: special("x.png")(here), words=("--out",)),
    Case("a page that asks a pipe", "sctd_jax.report $base/run --out $here/x.html --text $here/a.txt",
         lambda here, base: special("a.txt")(here), words=("a.txt is a pipe", "--text")),
    Case("a page of nothing", "sctd_jax.report $here --out $here/x.html"),
    Case("a page of a file", "sctd_jax.report $base/text.txt --out $here/x.html", words=("text.txt",)),
    Case("a page where no folder is", "sctd_jax.report $base/run --out $here/no/x.html", words=("x.html",)),
]  # fmt: skip
