"""The one table of all tasks, by name: adding a task adds it to its family's file, or a new family to this line."""

from sctd_jax.tasks.choice import CHOICE
from sctd_jax.tasks.glue import GLUE
from sctd_jax.tasks.own import OWN
from sctd_jax.tasks.sentiment import SENTIMENT
from sctd_jax.tasks.squad import SQUAD
from sctd_jax.tasks.superglue import SUPERGLUE
from sctd_jax.tasks.task import Task
from sctd_jax.tasks.tokens import TOKENS
from sctd_jax.tasks.xnli import XNLI

TASKS: dict[str, Task] = {
    task.name: task for task in (*GLUE, *SUPERGLUE, *SQUAD, *CHOICE, *SENTIMENT, *XNLI, *OWN, *TOKENS)
}
