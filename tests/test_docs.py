"""What the documents list is what the code has."""

from sctd_jax.finetune.tasks import TASKS
from tests import helpers


def task_rows():
    return [
        f"| `{name}` | {task.folder} | {task.head.replace('_', ' ')} | {', '.join(task.metrics)} | "
        f"{task.learning_rate:g}, {task.batch_size}, {task.epochs}, {task.max_length} |"
        for name, task in TASKS.items()
    ]


def test_the_table_of_tasks():
    text = (helpers.ROOT / "docs" / "finetuning.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `")] == task_rows()
