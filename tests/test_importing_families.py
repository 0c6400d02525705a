"""Checkpoints of RoBERTa's family and ModernBERT as they are found, without `transformers`."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.hf import config_json, names, read
from tests import helpers

WEIGHTS = "model.safetensors"
MODELS = {
    "roberta": helpers.config(model__family="roberta", model__type_vocab_size=1).model,
    "modernbert": helpers.config(
        model__family="modernbert", model__type_vocab_size=1, model__global_every=3, model__local_attention=8
    ).model,
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture
def params(model):
    rng = np.random.default_rng(0)
    leaves = {path: leaf.shape for path, leaf in names.shapes(model).items() if path[0] != "pooler"}
    return unflatten_dict({path: rng.standard_normal(shape).astype(np.float32) for path, shape in leaves.items()})


@pytest.fixture
def tensors(model, params):
    """What the class for masked language modelling would save."""
    leaves, first = flatten_dict(params), names.first_position(model.family, helpers.SPECIAL.pad)
    return {name: names.to_torch(model, paths, leaves, first) for name, paths in names.names(model).items()}


@pytest.fixture
def folder(model, rows, tmp_path):
    """Everything but the weights."""
    (tmp_path / "config.json").write_text(json.dumps(config_json.to_json(model, helpers.SPECIAL)))
    file = tokenizer.find(rows)
    (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def taken(folder, tensors):
    save_file(tensors, folder / WEIGHTS)
    return read.read_folder(folder)


def refused(folder, tensors, match):
    with pytest.raises(UserError, match=match) as caught:
        taken(folder, tensors)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_number_stands_in_torchs_layout(model, params, tensors):
    """Held against the layout by hand, so that a wrong one is not read back unnoticed."""
    width, layer = model.hidden_size, params["encoder"]["layer_1"]
    flat = {part: layer["attention"][part]["kernel"].reshape(width, width).T for part in ("query", "key", "value")}
    if model.family == "modernbert":
        expected = {
            "model.layers.1.attn.Wqkv.weight": np.concatenate([flat["query"], flat["key"], flat["value"]]),
            "model.layers.1.mlp.Wi.weight": np.concatenate(
                [layer["mlp"][part]["kernel"].T for part in ("intermediate", "gate")]
            ),
        }
        assert "model.layers.0.attn_norm.weight" not in tensors
    else:
        position = params["encoder"]["embeddings"]["position"]
        expected = {
            "roberta.encoder.layer.1.attention.self.query.weight": flat["query"],
            "roberta.embeddings.position_embeddings.weight": np.concatenate([np.zeros_like(position[:1]), position]),
        }
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


@pytest.mark.parametrize("front", ["", "module.", "_orig_mod.model.", "student.net."])
def test_wrappers_and_a_decoder_saved_twice(model, params, tensors, folder, front):
    layout = names.LAYOUTS[model.family]
    second = {name: tensors[tied] for name, tied in layout.tied.items()}
    found = taken(folder, {front + name: x for name, x in {**tensors, **second}.items()})
    same(found.params(), params)
    assert found.has_head and found.tensors == len(tensors) and not found.left_out
    assert bool(found.notes) == bool(front)


def test_what_is_tied_may_be_saved_under_either_name_but_not_differ(model, params, tensors, folder):
    layout = names.LAYOUTS[model.family]
    by_decoder = {name: tensors[tied] for name, tied in layout.tied.items()}
    without_bias = {name: x for name, x in tensors.items() if name != layout.output_bias}
    if layout.output_bias in layout.tied.values():
        same(taken(folder, without_bias | by_decoder).params(), params)
    else:
        refused(folder, without_bias | by_decoder, f"missing: {layout.output_bias}")
    for name, x in by_decoder.items():
        refused(folder, tensors | {name: x + 1}, f"{name} differs from {layout.tied[name]}, but this network ties")


def test_an_encoder_without_prefix_and_head(model, params, tensors, folder):
    layout = names.LAYOUTS[model.family]
    encoder = {name.removeprefix(layout.inner): x for name, x in tensors.items() if not name.startswith(layout.head)}
    found = taken(folder, encoder)
    assert not found.has_head
    same(found.params(), {"encoder": params["encoder"]})


def test_a_fine_tuned_models_pooler_is_taken_and_its_classifier_left_out(model, params, tensors, folder):
    layout = names.LAYOUTS[model.family]
    encoder = {name: x for name, x in tensors.items() if not name.startswith(layout.head)}
    leaves = {path: np.full(leaf.shape, 0.5, np.float32) for path, leaf in names.shapes(model).items()}
    leaves |= {("classifier", "kernel"): np.ones((32, 3), np.float32), ("classifier", "bias"): np.ones(3, np.float32)}
    head = {name: names.to_torch(model, paths, leaves) for name, paths in layout.tasks[names.SEQUENCE].items()}
    found = taken(folder, encoder | head)
    pooler = found.params()["pooler"]
    assert {float(x) for leaf in jax.tree.leaves(pooler) for x in np.unique(leaf)} == {0.5}
    assert sorted(found.left_out) == sorted(head) and not found.has_head
    assert found.tensors == len(encoder)
    dropped = next(name for name in head if name.startswith(("classifier.dense", "head.")))
    refused(folder, encoder | {name: x for name, x in head.items() if name != dropped}, "has half a pooler")
    refused(folder, encoder | head | {dropped: np.ones((2, 2), np.float32)}, "the pooler is")


def test_every_misfit_is_listed_by_the_familys_names(model, tensors, folder):
    layout = names.LAYOUTS[model.family]
    name = next(name for name in tensors if ".1." in name and name.endswith("o.weight" if "Wo" in name else "weight"))
    del tensors[name]
    message = refused(folder, tensors | {"cls.predictions.bias": np.ones(3, np.float32)}, "does not fit the")
    assert (
        f"does not fit the {layout.title} of its config.json; missing: {name}; unknown: cls.predictions.bias" in message
    )


def test_the_first_rows_of_a_position_table_are_those_of_its_padding(rows, tmp_path):
    """Another id of <pad> moves every position; rows before are of no use."""
    model = MODELS["roberta"]
    described = config_json.to_json(model, helpers.SPECIAL) | {"pad_token_id": 3, "max_position_embeddings": 36}
    (tmp_path / "config.json").write_text(json.dumps(described))
    file = tokenizer.find(rows)
    (tmp_path / file.name).write_bytes(file.read_bytes())
    leaves = {path: np.ones(leaf.shape, np.float32) for path, leaf in names.shapes(model).items()}
    tensors = {name: names.to_torch(model, paths, leaves, 4) for name, paths in names.names(model).items()}
    name = "roberta.embeddings.position_embeddings.weight"
    tensors[name] = np.arange(36 * 32, dtype=np.float32).reshape(36, 32)
    found = taken(tmp_path, tensors)
    np.testing.assert_array_equal(found.params()["encoder"]["embeddings"]["position"], tensors[name][4:])
    assert any("config.json says pad_token_id 3, but" in note for note in found.notes)
    tensors[name] = tensors[name][:-1]
    refused(tmp_path, tensors, r"position_embeddings.weight is F32 \(35, 32\), expected a float \(36, 32\)")
    assert load_file(tmp_path / WEIGHTS)[name].shape == (35, 32)
