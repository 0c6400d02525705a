import jax
import jax.numpy as jnp
import pytest

from sctd_jax.parallel import chips
from sctd_jax.pretrain.flops import forward_flops, mean_plain_step_flops, mean_step_flops, plain_step_flops, step_flops
from sctd_jax.pretrain.model import make_model
from sctd_jax.pretrain.step import variant_at
from tests import helpers


@pytest.mark.parametrize("method", ["full", "drop", "random_ltd"])
def test_the_formula_is_xlas_count_of_the_matrix_products(method):
    """A wide small model has little that is no product."""
    config = helpers.config(
        model__hidden_size=768, model__intermediate_size=3072, model__vocab_size=4096, dropping__method=method
    )
    model, ids = make_model(config), helpers.random_rows(2)
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
    assert 2 * forward_flops(config, "full" if method == "full" else "drop") == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "schedules",
    [
        {}, {"dropping__keep_schedule": "0:12,4:20,11:32"},
        {"data__seq_len_schedule": "0:16,5:32", "train__batch_schedule": "0:2,4:4,19:8"},
        {"data__seq_len_schedule": "0:24,5:32", "dropping__keep_schedule": "0:12,3:24"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["full", "drop", "sctd", "random_ltd"])
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


def test_ratios_of_the_12_layer_model_of_the_performance_issue():
    config = helpers.config(
        model__num_layers=12, model__hidden_size=256, model__intermediate_size=1024, model__vocab_size=8192,
        model__max_positions=128, data__seq_len=128, dropping__sc_interval=10, train__steps=100,
    )  # fmt: skip
    assert step_flops(config, "drop") / plain_step_flops(config) == pytest.approx(0.70, abs=0.03)
    assert mean_step_flops(config) / plain_step_flops(config) == pytest.approx(0.75, abs=0.03)


def test_peaks_by_device_kind():
    assert chips.find("TPU v5 lite").flops == 197e12
    assert chips.find("TPU v5p").flops == 459e12
    assert chips.find("NVIDIA H100 80GB HBM3").flops == 989e12
    assert chips.find("cpu") is None
