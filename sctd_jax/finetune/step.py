"""The train step of a task and the logits of its heads, as pure functions.

Shapes: B examples, C rows of one example (1, or the choices), N length, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.finetune.batches import TaskBatch
from sctd_jax.model.attention import attention_options
from sctd_jax.model.heads import SPANS, TaskModel
from sctd_jax.parallel import mesh as meshes
from sctd_jax.tasks.task import EACH_TOKEN, Task
from sctd_jax.train.optimizer import learning_rate, make_optimizer
from sctd_jax.train.state import TrainState, first_state
from sctd_jax.train.step import Metrics, accumulate, compile_ahead, update

_DROPOUT = 0  # the random stream of a step; the others are pretraining's


@dataclasses.dataclass(frozen=True)
class Shape:
    """Properties of a task that decide the shapes of network and batches."""

    head: str
    outputs: int  # K; labels, 1 for a score and for each choice, 2 for the ends of an answer
    rows: int = 1  # C
    marked: str = ""  # way in which the head reads marked spans
    label_weights: tuple[float, ...] = ()  # weight in the loss of each of K labels; () for 1


def shape_of(task: Task, labels: Sequence[str], rows: int = 1, label_weights: tuple[float, ...] = ()) -> Shape:
    """The shape of a task's network; `rows` is the number of choices."""
    outputs = {"classification": len(labels), "token_classification": len(labels), "span": 2}.get(task.head, 1)
    return Shape(task.head, outputs, rows, task.marked, label_weights)


def make_model(config: Config, shape: Shape, mesh: Mesh | None = None) -> TaskModel:
    """The network of a task, of a config with a choice of attention; without a mesh by plain attention."""
    options = attention_options(config.model, mesh, config.train.seed)
    return TaskModel(
        config.model, shape.outputs, shape.head in EACH_TOKEN, shape.head == "token_classification", shape.marked,
        **options,
    )  # fmt: skip


def initial_state(config: Config, shape: Shape) -> TrainState:
    """State before the first step with random weights; a pure function of `config.train.seed`."""
    init_key, run_key = jax.random.split(jax.random.key(config.train.seed))
    ids_BN = jnp.zeros((1, config.data.seq_len), jnp.int32)
    marked_BM2 = jnp.zeros((1, SPANS, 2), jnp.int32)
    params = make_model(config, shape).init(init_key, ids_BN, ids_BN == 0, ids_BN, marked_BM2)["params"]
    return first_state(params, config.optimizer, run_key)


def logits(model: TaskModel, params: Any, batch: TaskBatch, **kwargs) -> jax.Array:
    """f32: [B, K] classes, [B, C] choices, [B, 1] score, [B, N, 2] ends of the answer, [B, N, K] labels."""
    count, rows, length = batch.input_ids_BCN.shape
    flat = (x.reshape(count * rows, length) for x in (batch.input_ids_BCN, batch.mask_BCN, batch.segment_ids_BCN))
    found = model.apply({"params": params}, *flat, batch.marked_BM2, **kwargs)
    return found.reshape(count, rows) if rows > 1 else found


def losses(head: str, found: jax.Array, batch: TaskBatch) -> jax.Array:
    """Loss f32[B] of each example: cross-entropy, squared error, or the mean over both ends of the answer.

    In token classification the cross-entropy f32[B, N] of each token.
    """
    if head == "token_classification":
        chances_BNK, tags_BN = jax.nn.log_softmax(found), jnp.maximum(batch.tags_BN, 0)
        return -jnp.take_along_axis(chances_BNK, tags_BN[..., None], axis=-1)[..., 0]
    if head == "regression":
        return jnp.square(found[:, 0] - batch.labels_B)
    if head == "span":
        # [PAD] is no place for an answer.
        at_BN2 = jnp.where(batch.mask_BCN[:, 0, :, None], found, -1e9)
        chances = jax.nn.log_softmax(at_BN2, axis=1)
        return -jnp.take_along_axis(chances, batch.answers_B2[:, None], axis=1)[:, 0].mean(axis=-1)
    chances = jax.nn.log_softmax(found)
    return -jnp.take_along_axis(chances, batch.labels_B[:, None].astype(jnp.int32), axis=1)[:, 0]


def shares(shape: Shape, batch: TaskBatch) -> jax.Array:
    """Weight of each of `losses` in the mean over a batch: every example counts alike, or every labelled token.

    Where labels have weights, they count by them.
    """
    each_token = shape.head == "token_classification"
    labels = batch.tags_BN if each_token else batch.labels_B.astype(jnp.int32)
    found = batch.weights_B[:, None] * (batch.tags_BN >= 0) if each_token else batch.weights_B
    return found * jnp.asarray(shape.label_weights)[jnp.maximum(labels, 0)] if shape.label_weights else found


def make_train_step(
    config: Config, shape: Shape, mesh: Mesh | None = None
) -> Callable[[TrainState, TaskBatch], tuple[TrainState, Metrics]]:
    """The step (state, batch) -> (state, metrics); pure, for the caller to jit."""
    model, optimizer = make_model(config, shape, mesh), make_optimizer(config.optimizer)

    def step_fn(state: TrainState, batch: TaskBatch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _DROPOUT)
        total = shares(shape, batch).sum()
        total = jnp.where(total > 0, total, 1.0)  # windows without a label are all of a batch

        def loss_fn(params, microbatch, rows_B, index):
            rngs = {"dropout": jax.random.fold_in(key, index)}
            found = logits(model, params, microbatch, rngs=rngs, deterministic=False)
            return jnp.sum(losses(shape.head, found, microbatch) * shares(shape, microbatch)) / total, ()

        grads, loss, _ = accumulate(loss_fn, state.params, batch, config.train.accumulation)
        rate = learning_rate(config.optimizer, config.train.steps, state.step)
        return update(optimizer, rate, state, grads, loss)

    return step_fn


def compile_programs(
    config: Config, shape: Shape, mesh: Mesh, layout: TrainState, lengths: Sequence[int]
) -> dict[str, Callable]:
    """Programs (state, batch) -> (state, metrics) by name, one for each length of a batch.

    `layout` is the state's shapes, with its shardings on the mesh.
    """
    count = config.train.batch_size

    def array(dtype, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *sizes), dtype)

    programs, step_fn = {}, make_train_step(config, shape, mesh)
    for length in lengths:
        text, spans = (shape.rows, length), SPANS if shape.marked else 0
        tags = length if shape.head == "token_classification" else 0
        batch = TaskBatch(
            array(jnp.int32, *text), array(jnp.bool_, *text), array(jnp.int32, *text), array(jnp.int32, spans, 2),
            array(jnp.float32), array(jnp.int32, 2), array(jnp.float32), array(jnp.int32, tags),
        )  # fmt: skip
        programs[program_name(length)] = compile_ahead(step_fn, layout, batch, mesh)
    return programs


def program_name(length: int) -> str:
    """Name of the train step for batches of a length."""
    return f"N {length}"


def jit_logits(config: Config, shape: Shape, mesh: Mesh, layout: TrainState) -> Callable[[Any, TaskBatch], jax.Array]:
    """Jitted (params, batch) -> `logits` on every device; `layout` as in `compile_programs`."""
    params = meshes.shardings(layout.params)
    inputs, forward = (params, meshes.batch_sharding(mesh)), functools.partial(logits, make_model(config, shape, mesh))
    return jax.jit(forward, in_shardings=inputs, out_shardings=meshes.replicated(mesh))
