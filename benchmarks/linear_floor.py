"""Metrics of a linear classifier of word counts on a task, to compare a fine-tuned model with.

python benchmarks/linear_floor.py --task classification --data-dir labels/rotten_tomatoes.csv
python benchmarks/linear_floor.py --task boolq --data-dir labels      # reads the question alone

TF-IDF of words and pairs of words of an example's first text that are there twice, then logistic regression, both
scikit-learn's; the better of two strengths of regularisation on the dev set, which flatters it.
"""

import sys
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax.arguments import CommandParser
from sctd_jax.errors import run_command
from sctd_jax.tasks.examples import FileSettings
from sctd_jax.tasks.scoring import majority
from sctd_jax.tasks.splits import open_task
from sctd_jax.tasks.table import TASKS


def main() -> None:
    """The command; see the module's docstring."""
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--task", required=True, choices=[name for name, task in TASKS.items() if task.head == "classification"]
    )
    parser.add_argument("--data-dir", required=True)
    args = parser.parse_args()
    data = open_task(TASKS[args.task], args.data_dir, FileSettings())
    models = [
        make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=strength, max_iter=1000))
        for strength in (1, 10)
    ]
    for model in models:
        model.fit([e.first for e in data.train], [e.label for e in data.train])
    for split, examples in data.dev.items():
        best = max(model.score([e.first for e in examples], [e.label for e in examples]) for model in models)
        print(f"{args.task} {split}: most frequent label {majority(examples):.3f}, linear {best:.3f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
