"""`config.json` of each kind of model that `transformers` writes or wrote, and ours."""

import pytest

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.hf import config_json
from tests.helpers import SPECIAL

SIZES = {
    "vocab_size": 500, "num_hidden_layers": 5, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 256,
}  # fmt: skip
MODERN = {**SIZES, "model_type": "modernbert", "pad_token_id": 3}
# The form of the hub's first ModernBERTs, with fields that say nothing of the network.
OLD = {
    **MODERN, "global_attn_every_n_layers": 2, "global_rope_theta": 80_000.0, "local_rope_theta": 5_000.0,
    "local_attention": 32, "norm_eps": 1e-5, "layer_norm_eps": 1e-5, "hidden_activation": "gelu",
    "classifier_activation": "gelu", "classifier_bias": False, "classifier_pooling": "mean", "decoder_bias": True,
    "norm_bias": False, "attention_bias": False, "mlp_bias": False, "embedding_dropout": 0.0, "mlp_dropout": 0.0,
    "attention_dropout": 0.0, "position_embedding_type": "absolute", "initializer_cutoff_factor": 2.0,
}  # fmt: skip
KINDS = ["full_attention", "sliding_attention"]
NEW = {name: value for name, value in OLD.items() if not name.startswith(("global_", "local_rope"))} | {
    "layer_types": [*KINDS, *KINDS, KINDS[0]],
    "rope_parameters": {
        KINDS[0]: {"rope_theta": 80_000.0, "rope_type": "default"},
        KINDS[1]: {"rope_theta": 5_000.0, "rope_type": "default"},
    },
}


def read(**fields):
    return config_json.from_json(fields, "config.json")


def test_modernbert_in_the_form_of_transformers_4_and_of_5():
    found = read(**OLD)
    assert found == read(**NEW) == read(**OLD | NEW)
    assert (found["global_every"], found["rope_theta"], found["local_rope_theta"]) == (2, 80_000.0, 5_000.0)
    assert (found["local_attention"], found["type_vocab_size"], found["max_positions"]) == (32, 1, 256)
    silent = read(**MODERN)
    assert (silent["global_every"], silent["rope_theta"], silent["local_rope_theta"]) == (3, 160_000.0, 10_000.0)
    assert read(**NEW | {"layer_types": [KINDS[0]] * 5})["global_every"] == 1
    assert read(**NEW | {"layer_types": [KINDS[0], *[KINDS[1]] * 4]})["global_every"] == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_bias": True}, "norm_bias is True, supported is False"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"classifier_bias": True}, "classifier_bias is True"),
        ({"decoder_bias": False}, "decoder_bias is False, supported is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu', supported are gelu"),
        ({"classifier_activation": "silu"}, "classifier_activation is 'silu', supported is that of hidden_activation"),
        ({"embedding_dropout": 0.1}, "embedding_dropout is 0.1, supported is that of mlp_dropout"),
        ({"layer_types": KINDS}, r"layer_types are \['full_attention', 'sliding_attention'\], supported is"),
        ({"layer_types": [KINDS[1], *[KINDS[0]] * 4]}, r"layer_types are .* full_attention in layers 0, n, 2n"),
        ({"layer_types": [KINDS[0]] * 5, "global_attn_every_n_layers": 2}, "layer_types are"),
        ({"layer_types": "full"}, "layer_types are full"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0, expected a number from 1 on"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling is {'type': 'yarn'"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters are .* expected those of full_attention and"),
        ({"rope_parameters": {KINDS[0]: {"rope_type": "yarn"}}}, "rope_parameters of full_attention are .*yarn"),
        ({"rope_parameters": {KINDS[1]: {"factor": 2.0}}}, "rope_parameters of sliding_attention are"),
        ({"rope_parameters": {KINDS[1]: {"rope_theta": "1"}}}, "local_rope_theta is '1', expected a number"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
    ],
)
def test_what_our_modernbert_cannot_be_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=f"^config.json: no ModernBERT that can be imported: .*{message}") as caught:
        read(**NEW | fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_positions_of_roberta_begin_after_that_of_padding(kind):
    found = read(**SIZES, model_type=kind, type_vocab_size=1, pad_token_id=5)
    assert (found["family"], found["max_positions"], found["type_vocab_size"]) == (kind, 250, 1)
    assert read(**SIZES, model_type=kind)["max_positions"] == 254  # the classes' own padding is 1
    for pad in (None, "1"):
        with pytest.raises(UserError, match=r"pad_token_id is .*, expected an id, after which positions begin"):
            read(**SIZES, model_type=kind, pad_token_id=pad)
    with pytest.raises(UserError, match="hidden_act is 'gelu_new', supported are gelu, gelu_python"):
        read(**SIZES, model_type=kind, hidden_act="gelu_new")


@pytest.mark.parametrize(
    ("kind", "classes", "special"),
    [
        ("bert", "Bert", {"pad_token_id": 0}),
        ("roberta", "Roberta", {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}),
        ("xlm-roberta", "XLMRoberta", {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}),
        ("camembert", "Camembert", {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}),
        ("modernbert", "ModernBert",
         {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}),
    ],
)  # fmt: skip
def test_what_is_written_comes_back(kind, classes, special):
    modern = {"global_every": 3, "local_attention": 16, "rope_theta": 9.0, "local_rope_theta": 7.0, "num_layers": 2}
    model = ModelConfig(
        family=kind, type_vocab_size=1, layer_norm_eps=1e-5, hidden_dropout=0.25, attention_dropout=0.5,
        max_positions=100, **(modern if kind == "modernbert" else {}),
    )  # fmt: skip
    written = config_json.to_json(model, SPECIAL)
    assert written["architectures"] == [f"{classes}ForMaskedLM"]
    assert {name: value for name, value in written.items() if name.endswith("_token_id")} == special
    found = config_json.from_json(written, "config.json")
    assert found == {name: getattr(model, name) for name in found}
    assert len(found) == (17 if kind == "modernbert" else 13)


def test_roberta_has_one_gelu_in_transformers():
    """Their MLM head does not read `hidden_act`."""
    with pytest.raises(UserError, match=r"model.activation is 'gelu_tanh', but transformers' RoBERTa has 'gelu'"):
        config_json.to_json(ModelConfig(family="roberta", activation="gelu_tanh"), SPECIAL)
