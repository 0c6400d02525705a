"""GLUE (Wang et al., ICLR 2019): fields, metrics and averages of its files; hyperparameters of Devlin et al. (2019)."""

from collections.abc import Iterator, Sequence

from sctd_jax.errors import UserError
from sctd_jax.tasks.examples import Builder, Context, Example, classify
from sctd_jax.tasks.files import Record, read_tsv
from sctd_jax.tasks.submission import tsv
from sctd_jax.tasks.task import Part, SplitNames, Task

_NOT_ENTAILED = ("entailment", "not_entailment")
_PARTS = ("matched", "mismatched")  # MNLI's two dev and test sets
_COLA_COLUMNS = ("source", "label", "star", "sentence")


def _build_stsb(record: Record, context: Context) -> Iterator[Example]:
    score = None if context.hidden else record.real("score")
    if score is not None and not 0 <= score <= 5:
        raise UserError(f"{record.place}: the score {score:g} is outside of 0 to 5")
    pair = [context.text(record, field) for field in ("sentence1", "sentence2")]
    yield Example(record.id, *pair, label=score)


def _submit_stsb(examples: Sequence[Example], predictions: Sequence[float], labels: Sequence[str]) -> str:
    return tsv(examples, [f"{min(max(0.0, float(score)), 5.0):.3f}" for score in predictions])


def _glue(name: str, folder: str, metrics: tuple[str, ...], build: Builder, **other) -> Task:
    fields = {
        "head": "classification",
        "labels": ("0", "1"),
        "files": SplitNames("train.tsv", {"dev": "dev.tsv"}, {"test": "test.tsv"}),
        **other,
    }
    return Task(
        name=name, folder=folder, metrics=metrics, build=build, benchmark="glue",
        home="https://gluebenchmark.com/tasks", hub=("nyu-mll/glue", name), **fields,
    )  # fmt: skip


GLUE = (
    _glue("cola", "CoLA", ("mcc",), classify("sentence"), names=("unacceptable", "acceptable"), single=True,
          # train.tsv and dev.tsv have no header.
          read=lambda path, split, note: read_tsv(path, columns=() if split == "test" else _COLA_COLUMNS, note=note)),
    _glue("sst2", "SST-2", ("accuracy",), classify("sentence"), names=("negative", "positive"), single=True),
    _glue("mrpc", "MRPC", ("accuracy", "f1"), classify("#1 String", "#2 String", label="Quality"),
          names=("not_equivalent", "equivalent"),
          tfds_fields={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}),
    _glue("stsb", "STS-B", ("pearson", "spearman"), _build_stsb, labels=(), head="regression",
          tfds_fields={"label": "score"}, submission=_submit_stsb),
    # Official files of these two hold a few empty questions and hypotheses.
    _glue("qqp", "QQP", ("accuracy", "f1"), classify("question1", "question2", label="is_duplicate", some_empty=True),
          names=("not_duplicate", "duplicate"), tfds_fields={"label": "is_duplicate"},
          # Some questions hold a newline, which breaks their rows.
          read=lambda path, split, note: read_tsv(path, broken=split != "test", note=note)),
    _glue("mnli", "MNLI", ("accuracy", "accuracy_mm"),
          classify("sentence1", "sentence2", label="gold_label", some_empty=True),
          labels=("entailment", "neutral", "contradiction"),
          files=SplitNames("train.tsv", {f"dev_{part}": f"dev_{part}.tsv" for part in _PARTS},
                           {f"test_{part}": f"test_{part}.tsv" for part in _PARTS}),
          tfds_splits=SplitNames("train", {f"dev_{part}": f"validation_{part}" for part in _PARTS},
                                 {f"test_{part}": f"test_{part}" for part in _PARTS}),
          tfds_fields={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
          parts={"matched": Part("", "-m"), "mismatched": Part("_mm", "-mm"), "ax": Part("_ax", "", "AX")},
          # Diagnostics, to which the leaderboard applies the model of MNLI.
          diagnostics={"test_ax": ("AX/AX.tsv", "diagnostic/diagnostic.tsv")}),
    _glue("qnli", "QNLI", ("accuracy",), classify("question", "sentence"), labels=_NOT_ENTAILED),
    _glue("rte", "RTE", ("accuracy",), classify("sentence1", "sentence2"), labels=_NOT_ENTAILED),
    _glue("wnli", "WNLI", ("accuracy",), classify("sentence1", "sentence2"), names=_NOT_ENTAILED[::-1]),
)  # fmt: skip
