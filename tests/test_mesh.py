"""Every mesh gives what one device gives, and the tokens' way through the drop layers costs no communication."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sctd_jax.errors import UserError
from sctd_jax.model.token_dropping import SELECTORS
from sctd_jax.parallel import mesh as meshes
from sctd_jax.parallel import sharding
from sctd_jax.parallel.sharding import shard
from sctd_jax.pretrain.model import initial_state
from sctd_jax.pretrain.step import compile_programs, mask_batch, programs_needed, variant_at
from sctd_jax.train.optimizer import make_optimizer
from sctd_jax.train.step import state_shape
from tests import helpers

SHAPES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "1x1x8": (1, 1, 8), "2x2x2": (2, 2, 2), "4x2x1": (4, 2, 1)}
# One program each: a compiler's time is what this file costs. random_ltd's is a drop step, ScTD's a consistency step,
# which is a full pass and a drop pass. RoBERTa's network is BERT's (tests/test_bert.py), so that one stands for both.
# Three layers, one of each kind, are fewer than a recipe may have.
METHODS = {
    "full": {"dropping__method": "full", "layers": 2},
    "random_ltd": {
        "model__family": "roberta", "model__type_vocab_size": 1, "dropping__method": "random_ltd", "layers": 3,
        **helpers.DROPOUT,
    },
    "sctd": {
        "dropping__sc_interval": 1, "dropping__selector": "importance+random", "dropping__first_layer": 1, "layers": 3
    },
    "late_mask": {"dropping__method": "late_mask", "masking__rate": 0.4, "layers": 3, **helpers.DROPOUT},
    "keep_by_layer": {"dropping__method": "drop", "dropping__keep_by_layer": "2:12"},
    # Layers 0 and 3 are global; 1, 2 and 4 local, 2 and 3 drop.
    "modernbert": {
        "model__family": "modernbert", "layers": 5, "model__global_every": 3, "model__local_attention": 8,
        "model__type_vocab_size": 1, "dropping__sc_interval": 1, "dropping__first_layer": 2,
    },
}  # fmt: skip
FAMILIES = [(shape, method) for shape in SHAPES for method in ("sctd", "random_ltd", "modernbert")]
DROPPING = [(shape, method) for shape in SHAPES if shape != "4x2x1" for method in ("random_ltd", "sctd")]
FEWER = [("2x2x2", method) for method in ("full", "late_mask", "keep_by_layer")]


def config_on(shape, layers=4, **overrides):
    data, fsdp, tensor = shape
    sizes = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
    config = helpers.config(model__num_heads=8, model__intermediate_size=64, **sizes, **overrides)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=layers))


def start(config):
    """Every mesh and method of a network starts alike."""
    model = dataclasses.replace(config.model, hidden_dropout=0.0, attention_dropout=0.0)
    return helpers.initial(dataclasses.replace(config_on((1, 1, 1)), model=model))


def shape_on(config):
    """The state's shapes and shardings on the config's mesh."""
    return state_shape(lambda: initial_state(config, helpers.SPECIAL), meshes.make_mesh(config.mesh))


@functools.cache
def compiled(config):
    """The config's train steps, as the loop compiles them: ahead of time, so that nothing can compile twice."""
    needed, mesh = programs_needed(helpers.settled(config)), meshes.make_mesh(config.mesh)
    return compile_programs(needed, helpers.SPECIAL, mesh, shape_on(config))


def run(config, steps=5, scale=0.0):
    """State and metrics after some steps on the config's mesh, from parameters that are moved by `scale`."""
    mesh, fns, state = meshes.make_mesh(config.mesh), compiled(config), start(config)
    params = helpers.moved(state.params, scale)
    state = state.replace(params=params, opt_state=make_optimizer(config.optimizer).init(params))
    state = jax.device_put(state, meshes.shardings(shape_on(config)))
    history = []
    for step in range(steps):
        tokens = np.asarray(helpers.random_rows(config.train.batch_size, seed=step, pad=True))
        state, metrics = fns[variant_at(config, step)](state, meshes.put_batch(mesh, len(tokens), tokens))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@functools.cache
def on_one_device(method):
    state, history = run(config_on((1, 1, 1), **METHODS[method]))
    return jax.tree.map(np.asarray, (state.params, state.importance_V)), history


@pytest.mark.parametrize(("shape", "method"), [*FAMILIES, *FEWER])
def test_a_mesh_and_one_device_agree_after_five_steps(shape, method):
    """Losses, parameters and importance table to 1e-5.

    Each family meets every mesh: BERT and ModernBERT in a consistency step, RoBERTa in a drop step with dropout
    (random_ltd). The other methods meet all axes at once: alone, each meets the full pass of ScTD's step.
    """
    (params, importance_V), expected = on_one_device(method)
    state, history = run(config_on(SHAPES[shape], **METHODS[method]))
    for a, b in zip(expected, history, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(x, np.asarray(y), rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_allclose(importance_V, state.importance_V, rtol=1e-5, atol=1e-5)
    copies = [np.asarray(piece.data) for piece in state.importance_V.addressable_shards]
    assert len(copies) == 8
    assert all((copy == copies[0]).all() for copy in copies)  # docs/method.md 9.1


@pytest.mark.parametrize("name", ["lamb", "muon", "stable_adamw"])
def test_every_optimizer_takes_on_a_mesh_the_steps_of_one_device(name):
    """Its state is split as the parameters are, and the program writes the new one where the old one was."""
    on_mesh, alone = (
        config_on(shape, optimizer__name=name, **METHODS["full"]) for shape in (SHAPES["2x2x2"], (1, 1, 1))
    )
    (a, history), (b, expected) = (run(config, steps=3, scale=0.1) for config in (on_mesh, alone))
    for mine, theirs in zip(history, expected, strict=True):
        np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-5)
    trees = (jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)) for state in (a, b))
    for (path, x), (_, y) in zip(*trees, strict=True):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )
    state = shape_on(on_mesh)
    split = {x.sharding.spec for x in jax.tree.leaves(state.opt_state)}
    assert split >= {PartitionSpec("fsdp", "tensor", None), PartitionSpec("tensor", None, "fsdp")}
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves((state.params, state.opt_state)))
    assert compiled(on_mesh)["full"].memory_analysis().alias_size_in_bytes >= held


_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\((.*)"
)


def collectives(hlo):
    """(kind, shapes, functions on the way to the source line) of every collective of an optimised program."""

    def table(name):
        block = re.search(rf"^{name}\n((?:\d+ .*\n)+)", hlo, re.MULTILINE)[1]
        return {int(line.split()[0]): line for line in block.splitlines()}

    names, locations, frames = table("FunctionNames"), table("FileLocations"), table("StackFrames")
    functions = {number: line.split('"')[1].split(".")[-1] for number, line in names.items()}

    def way(frame):
        while frame > 0:
            location, parent = map(int, re.findall(r"(?:file_location|parent_frame)_id=(\d+)", frames[frame]))
            yield functions[int(re.search(r"function_name_id=(\d+)", locations[location])[1])]
            frame = parent - 1  # counted from 1, and 0 is none

    for shapes, kind, rest in _COLLECTIVE.findall(hlo):
        frame = re.search(r"stack_frame_id=(\d+)", rest)
        yield kind, re.findall(r"\w+\[([\d,]*)\]", shapes), list(way(int(frame[1]))) if frame else []


def collectives_of_a_step(config):
    """Collectives of the config's one program, where none may be of the tokens' way."""
    (program,) = compiled(config).values()
    found = list(collectives(program.as_text()))
    assert found
    assert all("step_fn" in way for *_, way in found)  # none comes from nowhere
    ours = {"select", *(scores.__name__ for scores in SELECTORS.values()), "keep_highest", "gather", "merge", "dropout"}
    assert not [entry for entry in found if ours & set(entry[2])]
    return found


@pytest.mark.parametrize(("shape", "method"), DROPPING)
def test_choosing_gathering_and_merging_tokens_costs_no_collective(shape, method):
    config = config_on(SHAPES[shape], **METHODS[method])
    found = collectives_of_a_step(config)
    if shape == "8x1x1":
        # Collectives that are left: the sums of the gradients, of the importance table and of the metrics.
        assert {kind for kind, *_ in found} == {"all-reduce"}
        state = shape_on(config)
        allowed = {",".join(map(str, leaf.shape)) for leaf in jax.tree.leaves((state.params, state.importance_V))}
        assert {shape for _, shapes, _ in found for shape in shapes} <= allowed | {""}


@pytest.mark.parametrize("shape", ["8x1x1", "2x2x2"])
def test_a_token_is_chosen_by_its_state_without_a_collective_and_as_on_one_device(shape):
    on_mesh, alone = (
        config_on(sizes, dropping__method="drop", dropping__selector="norm") for sizes in (SHAPES[shape], (1, 1, 1))
    )
    collectives_of_a_step(on_mesh)
    (a, (metrics,)), (b, (expected,)) = (run(config, steps=1, scale=0.1) for config in (on_mesh, alone))
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(a.importance_V, b.importance_V, rtol=1e-5, atol=1e-5)


def test_a_gather_that_would_cost_one_is_found():
    mesh = meshes.make_mesh(config_on((8, 1, 1)).mesh)
    batch = meshes.batch_sharding(mesh)

    def gather(x, rows):
        return x[jnp.arange(8)[:, None], rows]

    x = jax.ShapeDtypeStruct((8, 32, 4), jnp.float32, sharding=batch)
    rows = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=batch)
    hlo = jax.jit(gather, out_shardings=batch).lower(x, rows).compile().as_text()
    assert any(any("gather" in name for name in way) for *_, way in collectives(hlo))


def test_every_leaf_of_the_state_has_one_rule(monkeypatch):
    config = config_on((2, 2, 2), optimizer__name="lamb")
    mesh = meshes.make_mesh(config.mesh)
    shapes = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL))
    with pytest.raises(KeyError, match="0 sharding rules for params/pooler"):
        shard(mesh, shapes.replace(params={**shapes.params, "pooler": jax.ShapeDtypeStruct((4,), jnp.float32)}))
    monkeypatch.setitem(sharding.RULES, ".*/word", ())
    with pytest.raises(KeyError, match="2 sharding rules for params/encoder/embeddings/word"):
        shard(mesh, shapes)


def test_parameters_and_moments_are_split_as_the_table_says():
    config = config_on((2, 2, 2))
    state = shape_on(config)
    for tree in (state.params, state.opt_state[1].mu):
        layer = tree["encoder"]["layer_0"]
        assert layer["attention"]["query"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor", None)
        assert layer["mlp"]["output"]["kernel"].sharding.spec == PartitionSpec("tensor", "fsdp")
        assert tree["encoder"]["embeddings"]["word"].sharding.spec == PartitionSpec("tensor", None)
    share = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.params))
    assert share < 0.5 * sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))


def test_a_vocabulary_that_does_not_divide_is_on_every_device():
    config = config_on((1, 1, 8), model__vocab_size=510)
    word = shape_on(config).params["encoder"]["embeddings"]["word"]
    assert word.sharding.spec == PartitionSpec(None, None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train__batch_size": 12}, r"batch_size / accumulation (12) must be divisible by mesh.data x fsdp (8)"),
        ({"train__accumulation": 2}, r"batch_size / accumulation (4) must be divisible by mesh.data x fsdp (8)"),
        ({"train__consistency_accumulation": 4}, "consistency_accumulation (2) must be divisible by mesh.data x fsdp"),
        ({"mesh__data": 9}, r"mesh.data x fsdp x tensor is 9 x 1 x 1 = 9, but there are 8 devices"),
        ({"mesh__fsdp": 3}, r"mesh.data x fsdp x tensor is 2 x 3 x 1 = 6, but it must be all 8 devices"),
        ({"mesh__tensor": 16}, r"1 x 1 x 16 = 16, but there are 8 devices"),
        ({"mesh__tensor": 8}, r"model.num_heads (4) must be divisible by mesh.tensor (8)"),
        ({"mesh__tensor": 4, "model__intermediate_size": 66}, r"model.intermediate_size (66) must be divisible"),
        ({"mesh__fsdp": 8, "model__hidden_size": 36}, r"model.hidden_size (36) must be divisible by mesh.fsdp (8)"),
    ],
)
def test_a_batch_model_or_mesh_that_does_not_fit_the_devices_is_refused(overrides, words):
    config = helpers.config(**{"mesh__data": -1} | overrides)
    with pytest.raises(UserError, match=re.escape(words)):
        meshes.check_sizes(meshes.make_mesh(config.mesh), config.model, config.train)


def test_what_cannot_fit_is_refused_by_arithmetic_and_predictions_need_no_moments(monkeypatch):
    """Four layers of width 4,096 with 30,522 pieces are 1.6 GB; 8 local devices share the host's memory."""
    config = helpers.config(model__vocab_size=30522, model__hidden_size=4096)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    monkeypatch.setattr(meshes.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 16 * 10**9 // 4096)
    meshes.check_memory(mesh, config.model, config.train, 8, trained=False)
    with pytest.raises(UserError, match=r"a device has 2.0 GB, and the parameters with one moment take 3.2 GB"):
        meshes.check_memory(mesh, config.model, config.train, 8)
    many = dataclasses.replace(config.train, batch_size=10**9)
    with pytest.raises(UserError, match="states of 1,000,000,000 rows"):
        meshes.check_memory(mesh, helpers.config().model, many, 8)


def test_masks_are_the_same_for_one_two_and_eight_devices():
    tokens = np.asarray(helpers.random_rows(8))
    batches = []
    for devices in (1, 2, 8):
        config = helpers.config(mesh__data=devices)
        mesh = meshes.make_mesh(config.mesh)
        masked = jax.jit(functools.partial(mask_batch, config, helpers.SPECIAL))(
            jax.random.key(1), meshes.put_batch(mesh, len(tokens), tokens)
        )
        batches.append(jax.tree.map(np.asarray, masked))
    for other in batches[1:]:
        jax.tree.map(np.testing.assert_array_equal, batches[0], other)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Device of one node among several, as JAX describes it."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"

    @property
    def process_index(self):
        return self.id


def test_only_data_goes_across_nodes():
    devices = [Gpu(i, slice_index=i // 4) for i in range(8)]
    nodes = np.vectorize(lambda device: device.slice_index)(meshes.across_slices((4, 1, 2), 2, devices))
    assert (nodes[:2] == 0).all()
    assert (nodes[2:] == 1).all()
    with pytest.raises(
        UserError, match=r"config.mesh.data \(1\) must be divisible by the number of slices or GPU nodes"
    ):
        meshes.across_slices((1, 4, 2), 2, devices)
