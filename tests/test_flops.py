import jax
import jax.numpy as jnp
import pytest

from configs import base
from sctd_jax.config import from_dict
from sctd_jax.objective.masking import row_keys
from sctd_jax.parallel import chips
from sctd_jax.pretrain.flops import forward_flops, mean_plain_step_flops, mean_step_flops, plain_step_flops, step_flops
from sctd_jax.pretrain.model import initial_state, make_model
from sctd_jax.pretrain.step import forward_sums, mask_batch, variant_at
from tests import helpers


@pytest.mark.parametrize("family", [{}, {"model__family": "modernbert", "model__type_vocab_size": 1,
                                        "model__global_every": 3, "model__intermediate_size": 1152}])  # fmt: skip
@pytest.mark.parametrize("method", ["full", "drop", "random_ltd"])
def test_the_formula_is_xlas_count_of_the_matrix_products(method, family):
    """A wide small model has little that is no product. A local layer's window holds the rows of 32."""
    values = {"model__hidden_size": 768, "model__intermediate_size": 3072, "model__vocab_size": 4096}
    check_count(helpers.config(**(values | family), dropping__method=method), method)


@pytest.mark.parametrize("method", ["full", "drop"])
def test_the_formula_has_the_windows_of_local_layers_and_xla_counts_the_blocks_around_them(method):
    """Windows of 2 x 64 + 1 keys a query are the model's arithmetic, which MFU is measured by; computed are 3 x 64.

    Layer 1 is local; layer 2 too, and drops: kept tokens are compared with all of their context, as counted.
    """
    config = helpers.config(
        model__family="modernbert", model__type_vocab_size=1, model__global_every=3, model__local_attention=128,
        model__hidden_size=128, model__num_heads=1, model__intermediate_size=128, model__max_positions=512,
        data__seq_len=512, dropping__method=method, dropping__first_layer=2,
    )  # fmt: skip
    whole_local_layers = {"full": 2, "drop": 1}[method]
    of_one_key = 2 * 2 * 128 * 512  # its score and its value, for each of 512 queries
    beyond_windows = whole_local_layers * of_one_key * (3 * 64 - (2 * 64 + 1))
    check_count(config, method, beyond_windows)
    assert beyond_windows > 0.02 * forward_flops(config, method)  # or the count would not tell them apart


@pytest.mark.parametrize(
    "values",
    [
        {}, {"dropping__sc_full_mlm": False}, {"dropping__sc_full_mlm": False, "dropping__sc_pool": "mean"},
        {"dropping__sc_share_prefix": False},
    ],
)  # fmt: skip
def test_the_formula_of_a_consistency_step_is_xlas_count(values):
    """Its count before it merges what both passes compute alike."""
    config = helpers.config(
        model__hidden_size=768, model__intermediate_size=3072, model__vocab_size=4096, dropping__method="sctd", **values
    )
    tokens = helpers.random_rows(2)
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(0), tokens)
    state = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL))
    keys_B = row_keys(jax.random.key(1), jnp.arange(2))

    def forward(params, importance_V):
        return forward_sums(
            config, make_model(config), params, importance_V, batch, "consistency", dropout_key=None,
            selection_keys_B=keys_B,
        )  # fmt: skip

    counted = jax.jit(forward).lower(state.params, state.importance_V).cost_analysis()["flops"]
    assert 2 * forward_flops(config, "consistency") == pytest.approx(counted, rel=0.02)


def check_count(config, method, beyond_windows=0.0):
    """XLA's count of the drop pass, or of the full one, is to 2% the formula's and the products `beyond_windows`."""
    model, ids = make_model(config), helpers.random_rows(2, config.data.seq_len)
    shape = jax.eval_shape(model.init, jax.random.key(0), ids, ids > 0)["params"]
    rows = jnp.tile(jnp.arange(config.num_predicted + 1)[None], (2, 1))
    kept = {
        "full": None,
        "drop": (every := jnp.tile(jnp.arange(config.num_kept)[None], (2, 1))),
        "random_ltd": jnp.stack([every, every]),
    }[method]

    def forward(params):
        def network(bert):
            output, _ = bert.encoder(ids, ids > 0, kept_BK=kept, rows_BR=rows)
            return bert.mlm_logits(output[:, 1:])

        return model.apply({"params": params}, method=network)

    counted = jax.jit(forward).lower(shape).compile().cost_analysis()["flops"]
    expected = forward_flops(config, "full" if method == "full" else "drop") + beyond_windows
    assert 2 * expected == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "schedules",
    [
        {}, {"dropping__keep_schedule": "0:12,4:20,11:32"},
        {"data__seq_len_schedule": "0:16,5:32", "train__batch_schedule": "0:2,4:4,19:8"},
        {"data__seq_len_schedule": "0:24,5:32", "dropping__keep_schedule": "0:12,3:24"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["full", "drop", "sctd", "full_every", "random_ltd"])
@pytest.mark.parametrize(
    ("first", "last", "steps", "interval"), [(0, 0, 20, 10), (3, 2, 23, 5), (7, 0, 20, 3), (0, 5, 6, 4)]
)
def test_the_mean_over_the_schedule_is_the_mean_of_its_steps(schedules, method, first, last, steps, interval):
    config = helpers.config(
        **schedules,
        dropping__method=method, dropping__full_steps_first=first, dropping__full_steps_last=last,
        dropping__sc_interval=interval, train__steps=steps,
    )  # fmt: skip
    expected = sum(step_flops(config.at(step), variant_at(config, step)) for step in range(steps)) / steps
    assert mean_step_flops(config) == pytest.approx(expected, rel=1e-12)
    plain = sum(plain_step_flops(config.at(step)) for step in range(steps)) / steps
    assert mean_plain_step_flops(config) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("method", ["drop", "sctd", "full_every", "random_ltd", "late_mask"])
def test_the_mean_of_a_run_of_a_real_size_lies_between_its_steps(method):
    """250,000 steps of BERT-base are more FLOPs than an integer of 64 bits holds."""
    values = base.get_config().to_dict()
    values["dropping"]["method"] = method
    config = from_dict(values)
    costs = [step_flops(config, variant_at(config, step)) for step in range(11)]
    assert min(costs) <= mean_step_flops(config) <= max(costs)
    assert mean_step_flops(config) * config.train.steps > 2**63


def test_ratios_of_the_12_layer_model_of_the_performance_issue():
    config = helpers.config(
        model__num_layers=12, model__hidden_size=256, model__intermediate_size=1024, model__vocab_size=8192,
        model__max_positions=128, data__seq_len=128, dropping__sc_interval=10, train__steps=100,
    )  # fmt: skip
    assert step_flops(config, "drop") / plain_step_flops(config) == pytest.approx(0.70, abs=0.03)
    assert mean_step_flops(config) / plain_step_flops(config) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of one
        ("TPU v4 lite", None),  # another chip than a v4
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(device_kind, peak):
    """Another build of a GPU, or a part of one, has another peak: no MFU is better than one that is wrong."""
    chip = chips.find(device_kind)
    assert (chip and chip.flops) == peak
