"""Our numbers against those that the two public implementations computed themselves (tests/golden/README.md)."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.presets import modelgarden, sctd_release
from sctd_jax.config import from_dict
from sctd_jax.model import token_dropping
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.objective import losses
from sctd_jax.train.optimizer import learning_rate, make_optimizer
from tests.helpers import candidates

GOLDEN = Path(__file__).parent / "golden"
FORWARD, LOGITS, TABLE = 2e-5, 1e-4, 1e-4  # relative tolerances of the recordings
LARGEST = {}  # deviation and its test, by fixture and tolerance


@pytest.fixture(scope="module", autouse=True)
def table():
    """`pytest -s tests/test_parity.py` prints the largest deviation of each fixture."""
    yield
    print("\nlargest deviation, relative to the largest number of its array:")
    for (fixture, tolerance), (deviation, test) in sorted(LARGEST.items()):
        print(f"  {fixture:>16}  {deviation:.1e} of {tolerance:.0e} allowed  {test}")


@functools.cache
def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def close(ours, theirs, tolerance, mask=None, what=""):
    """Largest deviation, relative to the largest number of the array, at the positions of `mask`."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if mask is not None:
        ours, theirs = ours[np.asarray(mask)], theirs[np.asarray(mask)]
    deviation = np.abs(ours - theirs).max() / np.abs(theirs).max()
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].removesuffix(" (call)")
    fixture = "modelgarden_tiny" if "modelgarden" in test else "sctd_tiny"
    LARGEST[fixture, tolerance] = max(LARGEST.get((fixture, tolerance), (0.0, "")), (float(deviation), test))
    assert deviation < tolerance, f"{what}: {deviation:.2e}"


def config_of(preset, arrays):
    """A preset at the recording's size."""
    sizes, config = json.loads(str(arrays["config"])), preset.get_config()
    config.model.update(
        vocab_size=120, num_layers=6, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=16,
        hidden_dropout=0.0, attention_dropout=0.0, dtype="float32",
    )  # fmt: skip
    config.data.seq_len = 16
    config = from_dict(config.to_dict())
    assert config.model.layer_norm_eps == sizes["layernorm_eps"]
    assert (config.model.activation == "gelu_tanh") == (sizes["gelu"] == "tanh")
    assert config.dropping.importance_beta == sizes["beta"]
    assert config.drop_layers == (2, 4)
    return config


def forward(config, params, ids, mask, segments, kept):
    """(logits [B, N, V], states of every layer)."""

    def network(bert):
        output, states = bert.encoder(ids, mask, segments, kept_BK=kept)
        return bert.mlm_logits(output), states

    return MaskedLm(config.model, *config.drop_layers).apply({"params": params}, method=network)


jitted_forward = jax.jit(forward, static_argnums=0)


# Model Garden: its names for our leaves.


def modelgarden_tree(prefix, arrays):
    """Our parameter tree from its arrays: weights, or gradients, under `prefix`."""

    def get(name):
        return arrays[prefix + name]

    def dense(name):
        return {"kernel": get(f"{name}/kernel"), "bias": get(f"{name}/bias")}

    def norm(name):
        return {"scale": get(f"{name}/gamma"), "bias": get(f"{name}/beta")}

    encoder = {
        "embeddings": {
            "word": get("word_embeddings/embeddings"),
            "position": get("position_embedding/embeddings"),
            "segment": get("type_embeddings/embeddings"),
            "norm": norm("embeddings/layer_norm"),
        }
    }
    for i in range(6):
        layer = f"transformer/layer_{i}"
        attention = {name: dense(f"{layer}/self_attention/{name}") for name in ("query", "key", "value")}
        encoder[f"layer_{i}"] = {
            "attention": {**attention, "output": dense(f"{layer}/self_attention/attention_output")},
            "attention_norm": norm(f"{layer}/self_attention_layer_norm"),
            "mlp": {"intermediate": dense(f"{layer}/intermediate"), "output": dense(f"{layer}/output")},
            "output_norm": norm(f"{layer}/output_layer_norm"),
        }
    head = "cls/predictions"
    mlm_head = {
        "dense": dense(f"{head}/transform/dense"),
        "norm": norm(f"{head}/transform/LayerNorm"),
        "bias": get(f"{head}/output_bias/bias"),
    }
    return {"encoder": encoder, "mlm_head": mlm_head}


@pytest.fixture(scope="module")
def mg():
    arrays = load("modelgarden_tiny")
    return config_of(modelgarden, arrays), modelgarden_tree("weight/", arrays), arrays


def mg_inputs(arrays, batch):
    ids, mask, segments = (arrays[f"{batch}/input_{name}"] for name in ("word_ids", "mask", "type_ids"))
    return jnp.asarray(ids), jnp.asarray(mask, bool), jnp.asarray(segments)


def test_modelgarden_preset_is_the_printed_recipe():
    """docs/method.md 8."""
    config = from_dict(modelgarden.get_config().to_dict())
    assert (config.data.seq_len, config.num_kept, config.num_predicted) == (512, 256, 76)
    model, optimizer, train = config.model, config.optimizer, config.train
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (12, 768, 30522)
    assert (train.batch_size, train.steps) == (512, 1_000_000)
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.schedule) == (1e-4, 10_000, "linear")
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.clip_norm) == (0.9, 0.999, 1e-7, 1.0)
    assert optimizer.eps_place == "before_correction"
    assert (optimizer.weight_decay, optimizer.decay) == (0.01, "kernels")
    assert (model.hidden_dropout, model.attention_dropout) == (0.1, 0.1)
    assert (model.activation, model.layer_norm_eps) == ("gelu_tanh", 1e-12)
    assert (config.dropping.method, config.dropping.importance_beta) == ("drop", 0.995)


@pytest.mark.parametrize("batch", ["nopad", "pad"])
def test_modelgarden_selection(mg, batch):
    """Its `selected` is in order of importance; where no tie decides, the same positions in text order."""
    config, _, arrays = mg
    ids, mask, _ = mg_inputs(arrays, batch)
    table = jnp.asarray(arrays[f"{batch}/importance_table"])
    score = token_dropping.importance_scores(candidates(table, ids, mask))
    close(score, arrays[f"{batch}/token_importance"], 1e-7)
    kept = np.asarray(token_dropping.keep_highest(score, mask, config.num_kept))
    for row, (ours, theirs) in enumerate(zip(kept, arrays[f"{batch}/selected"], strict=True)):
        assert list(ours) == sorted(theirs), row


@pytest.mark.parametrize("batch", ["ties", "repeats", "short_seq"])
def test_modelgarden_ties_go_to_the_lower_position_as_ours_do(mg, batch):
    _, _, arrays = mg
    ids, mask, _ = mg_inputs(arrays, batch)
    table, theirs = jnp.asarray(arrays[f"{batch}/importance_table"]), arrays[f"{batch}/selected"]
    score = token_dropping.importance_scores(candidates(table, ids, mask))
    kept = token_dropping.keep_highest(score, mask, theirs.shape[1])
    np.testing.assert_array_equal(kept, np.sort(theirs, axis=1))


@pytest.mark.parametrize("batch", ["nopad", "pad"])
@pytest.mark.parametrize("which", ["full", "drop"])
def test_modelgarden_states_logits_and_losses(mg, batch, which):
    config, params, arrays = mg
    ids, mask, segments = mg_inputs(arrays, batch)
    kept = jnp.sort(jnp.asarray(arrays[f"{batch}/selected"]), axis=1) if which == "drop" else None
    logits, states = jitted_forward(config, params, ids, mask, segments, kept)
    order = np.argsort(arrays[f"{batch}/selected"], axis=1)
    for i, state in enumerate(states):
        theirs = arrays[f"{batch}/{which}/layer_{i}"]
        if theirs.shape[1] != 16:  # kept rows come by importance
            theirs = np.take_along_axis(theirs, order[..., None], axis=1)
        close(state, theirs, FORWARD, what=f"layer {i}")
    positions, targets, weights = (arrays[f"{batch}/masked_lm_{name}"] for name in ("positions", "ids", "weights"))
    predicted = jnp.take_along_axis(logits, jnp.asarray(positions)[..., None], axis=1)
    close(predicted, arrays[f"{batch}/{which}/mlm_logits"], LOGITS, what="logits")
    loss_BP = losses.cross_entropy(predicted, jnp.asarray(targets))
    close((loss_BP * weights).sum() / weights.sum(), arrays[f"{batch}/{which}/mlm_loss"], LOGITS, what="loss")


def test_modelgarden_embeddings(mg):
    config, params, arrays = mg
    ids, _, segments = mg_inputs(arrays, "pad")
    embedded = MaskedLm(config.model, 2, 4).apply(
        {"params": params}, method=lambda bert: bert.encoder.embeddings(ids, segments, True)
    )
    close(embedded, arrays["pad/embeddings"], FORWARD)


KEY_BIASES = ("['key']['bias']",)


def compare_gradients(ours, theirs, tolerance=1e-4, skip=()):
    """Each leaf against the recording, relative to the leaf's largest number.

    The attention key biases' true gradient is zero: softmax does not see a constant.
    """
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for (path, leaf), expected in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        if any(part in name for part in skip):
            continue
        if name.endswith("['key']['bias']"):
            assert float(jnp.abs(leaf).max()) < 1e-5 * scale
        else:
            close(leaf, expected, tolerance, what=name)


@functools.partial(jax.jit, static_argnums=0)
def modelgarden_loss_and_gradient(config, params, batch, kept):
    """Loss and gradient of its drop pass; `batch` has its names."""

    def loss(params):
        mask = batch["input_mask"].astype(bool)
        logits, _ = forward(config, params, batch["input_word_ids"], mask, batch["input_type_ids"], kept)
        predicted = jnp.take_along_axis(logits, batch["masked_lm_positions"][..., None], axis=1)
        loss_BP = losses.cross_entropy(predicted, batch["masked_lm_ids"])
        return (loss_BP * batch["masked_lm_weights"]).sum() / batch["masked_lm_weights"].sum()

    return jax.value_and_grad(loss)(params)


MODELGARDEN_BATCH = (
    "input_word_ids", "input_mask", "input_type_ids", "masked_lm_positions", "masked_lm_ids", "masked_lm_weights"
)  # fmt: skip


def test_modelgarden_gradient_of_every_parameter(mg):
    config, params, arrays = mg
    batch = {name: arrays[f"pad/{name}"] for name in MODELGARDEN_BATCH}
    loss, grads = modelgarden_loss_and_gradient(config, params, batch, np.sort(arrays["pad/selected"], axis=1))
    close(loss, arrays["pad/drop_step/loss"], LOGITS)
    compare_gradients(grads, modelgarden_tree("pad/drop_step/grad/", arrays))


def trajectory(config, params, arrays, loss_and_gradient):
    """Losses and gradient norms of 12 updates, by a preset's optimizer at the recorded rates, and the last parameters.

    Args:
      config: config of the preset.
      params: parameters before the first update.
      arrays: the recording.
      loss_and_gradient: (number of the update, parameters, importance table before it) -> (loss, gradient).
    """
    optimizer = make_optimizer(config.optimizer)

    @jax.jit
    def move(params, state, grads, rate):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, optax.tree.norm(grads)

    state, history = optimizer.init(params), []
    tables = [arrays[name] for name in arrays if name.startswith("init/") and "importance" in name]
    tables = [tables[0].ravel(), *arrays["importance"]]
    for step, rate in enumerate(arrays["lr"]):
        loss, grads = loss_and_gradient(step, params, tables[step])
        params, state, norm = move(params, state, grads, np.float32(rate))
        history.append((float(loss), float(norm)))
    return *np.array(history).T, params


def rates(config):
    """Ours at the recordings' peak, warm-up and length, as the presets have them."""
    recorded = dataclasses.replace(config.optimizer, learning_rate=2e-3, warmup_steps=4)
    config = dataclasses.replace(config, optimizer=recorded, train=dataclasses.replace(config.train, steps=20))
    return np.array([learning_rate(config.optimizer, config.train.steps, step) for step in range(12)])


def test_modelgarden_trains_as_its_preset_does(mg):
    """Twelve updates of its task by its optimizer; the selection is by its own table (docs/method.md 9.2 to 9.4)."""
    config, arrays = mg[0], load("modelgarden_trajectory")

    def loss_and_gradient(step, params, table_V):
        batch = {name: arrays[f"steps/{name}"][step] for name in MODELGARDEN_BATCH}
        ids, mask = jnp.asarray(batch["input_word_ids"]), jnp.asarray(batch["input_mask"], bool)
        score = token_dropping.importance_scores(candidates(jnp.asarray(table_V), ids, mask))
        return modelgarden_loss_and_gradient(
            config, params, batch, np.asarray(token_dropping.keep_highest(score, mask, config.num_kept))
        )

    loss, norm, params = trajectory(config, modelgarden_tree("init/", arrays), arrays, loss_and_gradient)
    close(loss, arrays["loss"], LOGITS)
    close(norm, arrays["global_norm_used_for_clipping"], LOGITS)
    compare_gradients(params, modelgarden_tree("final/", arrays), skip=KEY_BIASES)
    # Its linear decay counts from 0, so that its warm-up ends at 0.8 of the peak here, and its rate is that of our
    # update before.
    np.testing.assert_allclose(arrays["lr"][1:5], 0.8 * rates(config)[:4], rtol=1e-5)


def moved_table(arrays, case, beta, frozen):
    before = jnp.asarray(arrays["importance/before"])
    ids, recorded = (jnp.asarray(arrays[f"importance/{case}/{name}"]) for name in ("ids", "losses"))
    sums = token_dropping.importance_sums(120, ids, recorded, jnp.ones(ids.shape))
    return np.asarray(token_dropping.update_importance(before, *sums, beta, frozen)), np.asarray(ids)


def test_modelgarden_importance_update(mg):
    """Equal for unique ids; on purpose not for duplicates, [PAD] and [UNK] (docs/method.md 9.2 to 9.4)."""
    config, _, arrays = mg
    beta, frozen = config.dropping.importance_beta, (0, 100, 101, 102, 103)
    ours, _ = moved_table(arrays, "unique", beta, frozen)
    close(ours, arrays["importance/unique/after"], TABLE)
    ours, ids = moved_table(arrays, "duplicates", beta, frozen)
    theirs = arrays["importance/duplicates/after"]
    values, counts = np.unique(ids, return_counts=True)
    recorded, before = arrays["importance/duplicates/losses"], arrays["importance/before"]
    for v, count in zip(values, counts, strict=True):
        mean = recorded[ids == v].mean()
        np.testing.assert_allclose(ours[v], beta * before[v] + (1 - beta) * mean, rtol=1e-5)
        if count > 1:  # theirs is the last occurrence alone
            last = recorded[ids == v][-1]
            np.testing.assert_allclose(theirs[v], beta * before[v] + (1 - beta) * last, rtol=1e-5)
    assert counts.max() > 1
    ours, ids = moved_table(arrays, "padded_slots_and_allow_list", beta, frozen)
    theirs = arrays["importance/padded_slots_and_allow_list/after"]
    touched = sorted(set(ids.ravel()) & set(frozen))
    assert 0 in touched
    np.testing.assert_array_equal(ours[touched], before[touched])
    assert (np.abs(theirs[touched] - before[touched]) > 1).all()


# ScTD: fairseq's names, torch's layouts.

SCTD = "encoder.sentence_encoder."


def sctd_tree(prefix, arrays):
    """Our parameter tree; positions start at row 2 there, and there is no segment embedding."""

    def get(name):
        return arrays[prefix + name]

    def dense(name):
        return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}

    def norm(name):
        return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}

    def split(name):  # (out, in) -> [D, H, d]
        kernel, bias = get(f"{name}.weight").T, get(f"{name}.bias")
        return {"kernel": kernel.reshape(32, 4, 8), "bias": bias.reshape(4, 8)}

    encoder = {
        "embeddings": {
            "word": get(f"{SCTD}embed_tokens.weight"),
            "position": get(f"{SCTD}embed_positions.weight")[2:],
            "segment": np.zeros((2, 32), np.float32),
            "norm": norm(f"{SCTD}layernorm_embedding"),
        }
    }
    for i in range(6):
        layer = f"{SCTD}layers.{i}"
        attention = {
            ours: split(f"{layer}.self_attn.{theirs}_proj")
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
        }
        out = dense(f"{layer}.self_attn.out_proj")
        encoder[f"layer_{i}"] = {
            "attention": {**attention, "output": {**out, "kernel": out["kernel"].reshape(4, 8, 32)}},
            "attention_norm": norm(f"{layer}.self_attn_layer_norm"),
            "mlp": {"intermediate": dense(f"{layer}.fc1"), "output": dense(f"{layer}.fc2")},
            "output_norm": norm(f"{layer}.final_layer_norm"),
        }
    head = "encoder.lm_head."
    mlm_head = {"dense": dense(f"{head}dense"), "norm": norm(f"{head}layer_norm"), "bias": get(f"{head}bias")}
    return {"encoder": encoder, "mlm_head": mlm_head}


@pytest.fixture(scope="module")
def sctd():
    arrays = load("sctd_tiny")
    return config_of(sctd_release, arrays), sctd_tree("weight/", arrays), arrays


def sctd_inputs(arrays, batch):
    ids = jnp.asarray(arrays[f"{batch}/src_tokens"])
    return ids, ids != 1


def test_sctd_preset_is_the_printed_recipe():
    """docs/method.md 8."""
    config = from_dict(sctd_release.get_config().to_dict())
    model, optimizer, train, dropping = config.model, config.optimizer, config.train, config.dropping
    assert (config.data.seq_len, config.num_kept, config.masking.rate) == (512, 256, 0.15)
    assert (model.num_layers, model.hidden_size, model.num_heads, model.intermediate_size) == (24, 1024, 16, 4096)
    assert (train.steps, train.accumulation, train.batch_size) == (250_000, 2, 8 * 2 * 8)
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.schedule) == (2e-4, 25_000, "linear")
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.clip_norm) == (0.9, 0.999, 1e-6, 0.0)
    assert optimizer.eps_place == "before_correction"
    assert (optimizer.weight_decay, optimizer.decay) == (0.01, "all")
    assert (model.hidden_dropout, model.attention_dropout) == (0.1, 0.1)
    assert (model.activation, model.layer_norm_eps) == ("gelu", 1e-5)
    assert (dropping.method, dropping.sc_interval, dropping.importance_beta) == ("sctd", 10, 0.95)
    assert dropping.sc_weight == pytest.approx(0.05 / config.num_predicted)


@pytest.mark.parametrize("batch", ["nopad", "pad"])
@pytest.mark.parametrize("which", ["full", "drop"])
def test_sctd_states_logits_and_losses(sctd, batch, which):
    """Compared at real tokens: it zeroes the embeddings of [PAD], which nothing reads."""
    config, params, arrays = sctd
    ids, mask = sctd_inputs(arrays, batch)
    kept = jnp.asarray(arrays[f"{batch}/selected"]) if which == "drop" else None
    kept_mask = None if kept is None else jnp.take_along_axis(mask, kept, axis=1)
    embedded = MaskedLm(config.model, 2, 4).apply(
        {"params": params}, method=lambda bert: bert.encoder.embeddings(ids, jnp.zeros_like(ids), True)
    )
    close(embedded, arrays[f"{batch}/{which}/hidden_0"], FORWARD, mask, what="embeddings")
    logits, states = jitted_forward(config, params, ids, mask, None, kept)
    for i, state in enumerate(states):
        theirs = arrays[f"{batch}/{which}/hidden_{i + 1}"]
        close(state, theirs, FORWARD, mask if theirs.shape[1] == 16 else kept_mask, what=f"layer {i}")
    close(logits, arrays[f"{batch}/{which}/logits"], LOGITS, mask, what="logits")
    targets = arrays[f"{batch}/target"]
    loss_BN = losses.cross_entropy(logits, jnp.asarray(targets)) * (targets != 1)
    close(loss_BN, arrays[f"{batch}/{which}/mlm_loss_per_position"], LOGITS, targets != 1)
    close(loss_BN.sum(), arrays[f"{batch}/{which}/mlm_loss_sum"], LOGITS)


@pytest.mark.parametrize("batch", ["nopad", "pad"])
def test_sctd_keeps_pads_before_words_and_we_do_not(sctd, batch):
    """Equally important positions on full rows (its ties fall otherwise), no pad before words (docs/method.md 9.2)."""
    config, _, arrays = sctd
    ids, mask = sctd_inputs(arrays, batch)
    score = token_dropping.importance_scores(candidates(jnp.asarray(arrays[f"{batch}/importance_table"]), ids, mask))
    kept, theirs = np.asarray(token_dropping.keep_highest(score, mask, config.num_kept)), arrays[f"{batch}/selected"]
    for row in range(len(kept)):
        real = np.asarray(mask[row])
        assert real[kept[row]].sum() == min(real.sum(), config.num_kept)
        if real.all():
            values = np.asarray(score[row])
            np.testing.assert_array_equal(np.sort(values[kept[row]]), np.sort(values[theirs[row]]))
        else:
            assert real[theirs[row]].sum() < real[kept[row]].sum()


def test_sctd_drops_cls_of_short_rows_and_we_do_not(sctd):
    """docs/method.md 9.2, recorded in `cls_dropped`: its kept tokens of rows 1 to 3 are all [PAD]."""
    config, _, arrays = sctd
    ids, mask = sctd_inputs(arrays, "cls_dropped")
    assert (arrays["cls_dropped/selected"][1:] > 0).all()
    score = token_dropping.importance_scores(candidates(jnp.asarray(arrays["cls_dropped/importance_table"]), ids, mask))
    assert (token_dropping.keep_highest(score, mask, config.num_kept)[:, 0] == 0).all()


PAPER = {"released": np.float32(0), "sc_weight": np.float32(0.05)}
RELEASED = {**PAPER, "released": np.float32(1)}


def sctd_objective(config, params, ids, targets, kept, *, stop_gradient, released=0.0, sc_weight=0.05):
    """The paper's loss in the recording's scale (sums, not means), and its two KLs by both poolings.

    With `released` 1, the loss of its code: the second MLM term is the drop pass's too (docs/method.md 9.6).
    """
    mask = ids != 1
    drop_logits, drop_states = forward(config, params, ids, mask, None, kept)
    full_logits, full_states = forward(config, params, ids, mask, None, None)
    kls = {}
    kept_mask = jnp.take_along_axis(mask, kept, axis=1)
    for name, i, drop_mask in (("penultimate", -2, kept_mask), ("final", -1, mask)):
        for pool in ("cls", "mean"):
            full = losses.pool(full_states[i], mask, pool)
            full = jax.lax.stop_gradient(full) if stop_gradient else full
            kls[f"{pool}_{name}"] = losses.consistency_kl(full, losses.pool(drop_states[i], drop_mask, pool))
    mlm = [(losses.cross_entropy(x, targets) * (targets != 1)).sum() for x in (drop_logits, full_logits)]
    second = released * mlm[0] + (1 - released) * mlm[1]
    sums = losses.Sums(mlm[0], second, kls["cls_final"], kls["cls_penultimate"])
    return losses.combine(sums, jnp.array(1.0), 1, consistency=True, sc_weight=sc_weight), kls


@functools.partial(jax.jit, static_argnames=("config", "stop_gradient"))
def sctd_loss_and_gradient(config, params, *batch, **kwargs):
    objective = functools.partial(sctd_objective, config, **kwargs)
    return jax.value_and_grad(lambda params: objective(params, *batch), has_aux=True)(params)


def sctd_batch(arrays, batch):
    """(ids, targets, kept positions) of a recorded batch."""
    return tuple(np.asarray(arrays[f"{batch}/{name}"], np.int32) for name in ("src_tokens", "target", "selected"))


@pytest.mark.parametrize("batch", ["nopad", "pad"])
def test_sctd_consistency_kl_by_both_poolings(sctd, batch):
    """Its mean pools [PAD] too, ours does not: equal on full rows, different on purpose where there is padding."""
    config, params, arrays = sctd
    (_, kls), _ = sctd_loss_and_gradient(config, params, *sctd_batch(arrays, batch), stop_gradient=False, **PAPER)
    for name in ("penultimate", "final"):
        close(kls[f"cls_{name}"], arrays[f"{batch}/kl_cls_{name}"], LOGITS, what=name)
        theirs = arrays[f"{batch}/kl_avg_{name}"]
        if batch == "nopad":
            close(kls[f"mean_{name}"], theirs, LOGITS, what=name)
        else:
            assert abs(float(kls[f"mean_{name}"]) / float(theirs) - 1) > 1e-3


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_sctd_paper_objective_and_the_gradient_of_every_parameter(sctd, stop_gradient):
    config, params, arrays = sctd
    name = "paper_align_detached_target" if stop_gradient else "paper_align"
    batch = sctd_batch(arrays, "pad")
    (loss, _), grads = sctd_loss_and_gradient(config, params, *batch, stop_gradient=stop_gradient, **PAPER)
    close(loss, arrays[f"pad/{name}/loss"], LOGITS)
    theirs = sctd_tree(f"pad/{name}/grad/", arrays)
    compare_gradients(grads, theirs, skip=("segment",))


@pytest.mark.parametrize("batch", ["nopad", "pad"])
def test_sctd_takes_its_second_mlm_term_from_the_drop_pass_and_we_do_not(sctd, batch):
    """docs/method.md 9.6: its released loss is the paper's with MLM(drop) in the place of MLM(full)."""
    config, params, arrays = sctd
    ours, released = (
        sctd_loss_and_gradient(config, params, *sctd_batch(arrays, batch), stop_gradient=False, **terms)[0][0]
        for terms in (PAPER, RELEASED)
    )
    close(released, arrays[f"{batch}/official_align/loss"], LOGITS)
    assert abs(float(ours) - float(arrays[f"{batch}/official_align/loss"])) > 0.1


def test_sctd_trains_as_its_preset_does(sctd):
    """Twelve updates of its code, two of them consistency steps; the selection is its own, ties and all (9.2)."""
    config, arrays = sctd[0], load("sctd_trajectory")

    def loss_and_gradient(step, params, table_V):
        ids, targets, tokens = (arrays[f"steps/{name}"][step] for name in ("src_tokens", "target", "ntokens"))
        kept = np.sort(np.argsort(table_V[ids], axis=1, kind="stable")[:, 8:], axis=1)
        terms = RELEASED if step % config.dropping.sc_interval == 0 else {**RELEASED, "sc_weight": np.float32(0)}
        (loss, _), grads = sctd_loss_and_gradient(config, params, ids, targets, kept, stop_gradient=False, **terms)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        grads["encoder"]["embeddings"]["segment"] *= 0  # it has none
        return loss, grads

    loss, norm, params = trajectory(config, sctd_tree("init/", arrays), arrays, loss_and_gradient)
    close(loss, arrays["loss_sum"], LOGITS)
    close(norm, arrays["grad_norm"], LOGITS)
    compare_gradients(params, sctd_tree("final/", arrays), skip=(*KEY_BIASES, "segment"))
    # Its first update has rate 0: in the warm-up its rate is that of our update before.
    np.testing.assert_allclose(arrays["lr"][:5], [0, *rates(config)[:4]], rtol=1e-5)
    np.testing.assert_allclose(arrays["lr"][4:], rates(config)[4:], rtol=1e-5)


def test_sctd_importance_update(sctd):
    """Equal for unique ids, and its allow list stays where it is, as ours does."""
    config, _, arrays = sctd
    beta, frozen = config.dropping.importance_beta, (0, 1, 2, 119)
    for case in ("unique", "allow_list"):
        ours, _ = moved_table(arrays, case, beta, frozen)
        close(ours, arrays[f"importance/{case}/after"], TABLE, what=case)
    ours, ids = moved_table(arrays, "duplicates", beta, frozen)
    repeated = [v for v in set(ids.tolist()) if (ids == v).sum() > 1 and v not in frozen]
    assert repeated
    assert (np.abs(ours - arrays["importance/duplicates/after"])[repeated] > 1e-3).any()  # docs/method.md 9.4
