"""Each family against `transformers` in its own environment (tests/interop_families.py)."""

import dataclasses
import json
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sctd_jax.data import tokenizer
from sctd_jax.hf import names, write
from sctd_jax.hf.read import read_folder
from sctd_jax.interop import importing
from sctd_jax.model.heads import TaskModel
from sctd_jax.models import open_model, open_run
from sctd_jax.pretrain.model import make_model
from tests import finetuning, helpers, small
from tests.documented_commands import commands
from tests.test_interop import export, fill_mask_prompt, needs_peer, real_lines

KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "modernbert")
LENGTHS = {"modernbert": (128, 512, 1024, 2048)}
TYPES = ("float32", "bfloat16", "float16")
# Largest deviations that are float32's: logits reach 10, gradients are compared in units of their tensor's largest.
LOGITS, GRADIENT = 1e-4, 1e-4


@pytest.fixture(scope="module")
def created(run_peer, tmp_path_factory):
    """Models that `transformers` made, and its answers."""
    out = tmp_path_factory.mktemp("families")
    (out / "lines.txt").write_text("\n".join(" ".join(line.split()) for line in real_lines(300)))
    run_peer("interop_families.py", "create", out, out / "lines.txt")
    return out


@pytest.fixture(scope="module", params=KINDS)
def kind(request, created):
    return request.param


@pytest.fixture(scope="module")
def answers(created, kind):
    return np.load(created / f"{kind}.npz", allow_pickle=False)


def in_float32(config):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))


def opened(folder):
    """(parameters, config to compute in float32)."""
    model = open_model(str(folder), print)
    return model.params(), in_float32(model.config)


def forward(config, params, ids, mask):
    """(embeddings and layers' outputs, logits [B, N, V])."""

    def states_and_logits(network):
        embedded = network.encoder.embeddings(ids, jnp.zeros_like(ids), True)
        output, states = network.encoder(ids, mask)
        return (embedded, *states), network.mlm_logits(output)

    return make_model(config).apply({"params": params}, method=states_and_logits)


@needs_peer
@pytest.mark.parametrize("dtype", TYPES)
def test_logits_are_those_of_transformers_at_every_length(created, kind, answers, dtype):
    params, config = opened(created / kind / dtype)
    assert config.model.family == kind
    run = jax.jit(lambda params, ids, mask: forward(config, params, ids, mask)[1])
    lengths = LENGTHS.get(kind, (128, 512))
    for length in lengths if dtype == "float32" else lengths[:1]:
        ids, mask = answers[f"ids_{length}"], answers[f"mask_{length}"]
        theirs = answers[f"logits_{dtype}_{length}" if length == lengths[0] else f"logits_{length}"]
        ours = run(params, jnp.asarray(ids, jnp.int32), jnp.asarray(mask))
        deviation = np.abs(ours - theirs)[mask].max()
        print(f"{kind} {dtype} {length}: logits' largest deviation {deviation:.1e} of {np.abs(theirs[mask]).max():.1f}")
        assert deviation < LOGITS
        assert theirs[mask].std() > 0.3  # a network that says something


@needs_peer
def test_states_loss_and_the_gradient_of_every_parameter_are_those_of_torch(created, kind, answers):
    params, config = opened(created / kind / "float32")
    ids, mask = jnp.asarray(answers["ids_128"], jnp.int32), jnp.asarray(answers["mask_128"])
    labels = answers["labels"]
    there = jnp.asarray(labels >= 0)

    @jax.jit
    @jax.value_and_grad
    def loss_of(params):
        log_BNV = jax.nn.log_softmax(forward(config, params, ids, mask)[1])
        picked_BN = jnp.take_along_axis(log_BNV, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return -(picked_BN * there).sum() / there.sum()

    loss, gradient = loss_of(params)
    assert loss == pytest.approx(float(answers["loss"]), rel=1e-5)
    states, _ = jax.jit(lambda params: forward(config, params, ids, mask))(params)
    states = np.stack(states)
    assert states.shape == answers["hidden"].shape
    layers = [np.abs(a - b)[mask].max() for a, b in zip(states, answers["hidden"], strict=True)]
    print(f"{kind}: states' largest deviation by layer {[f'{d:.1e}' for d in layers]}")
    assert max(layers) < 1e-4
    leaves, table = flatten_dict(gradient), names.names(config.model)
    first = names.first_position(kind, config_of(created, kind)["pad_token_id"])
    theirs = {name.removeprefix("grad."): answers[name] for name in answers.files if name.startswith("grad.")}
    theirs = {names.LAYOUTS[kind].tied.get(name, name): gradient for name, gradient in theirs.items()}
    assert theirs.keys() == table.keys()
    deviations = {}
    for name, paths in table.items():
        mine = names.to_torch(config.model, paths, leaves, first)
        deviations[name] = np.abs(mine - theirs[name]).max() / max(np.abs(theirs[name]).max(), 1e-3)
    worst = max(deviations, key=deviations.get)
    print(f"{kind}: {len(deviations)} gradients, largest relative deviation {deviations[worst]:.1e} ({worst})")
    assert deviations[worst] < GRADIENT


def config_of(created, kind):
    return json.loads((created / kind / "float32" / "config.json").read_text())


@needs_peer
def test_models_come_in_go_out_and_transformers_loads_them_without_a_warning(created, run_peer, tmp_path):
    recipe = small.get_config().to_dict()
    for kind in KINDS:
        source, back = created / kind / "float32", created / kind / "back"
        importing.import_model(source, tmp_path / kind, tokenizer_file=None, recipe=recipe, log=print)
        run = open_run(tmp_path / kind, print)
        assert run.config.model.family == kind
        export(tmp_path / kind, back)
        for dtype in TYPES[1:]:
            export(tmp_path / kind, created / kind / f"back_{dtype}", f"--dtype={dtype}", "--max-shard-size=60KB")
        prompt, top5 = fill_mask_prompt(dataclasses.replace(run, config=in_float32(run.config)))
        np.savez(created / kind / "guesses.npz", prompt=prompt, top5=top5)
        before, after = read_folder(source), read_folder(back)
        jax.tree.map(np.testing.assert_array_equal, after.params(), before.params())
        assert after.network == before.network
    run_peer("interop_families.py", "check", created, created / "lines.txt")


def as_in_the_readme(folder, model, out):
    """Import, trial and export of README.md, a newcomer's lines, with the texts in folder/text."""
    own = {"--from bert": f"--from {model}", "'clinical/": f"'{folder}/text/", "runs/exported": str(out)}
    own |= {"train.steps=20": "train.steps=4", "warmup_steps=5": "warmup_steps=2"}
    own |= {f"runs/{name}": f"{folder}/runs/{name}" for name in ("bert", "trial")}
    own["--workdir runs/continued"] = f"--workdir {folder}/runs/trial"
    lines = [command.text for command in commands(helpers.ROOT) if command.place.startswith("README.md")]
    for begins in (
        "import --from bert",
        "continued.py:runs/bert --workdir=runs/trial",
        "export --workdir runs/continued",
    ):
        (line,) = (line for line in lines if begins in line)
        for word, ours in own.items():
            line = line.replace(word, ours)
        module, *arguments = shlex.split(line.partition(" -m ")[2])
        done = helpers.run_module(module, *arguments)
        assert done.returncode == 0, done.stderr


@needs_peer
@pytest.mark.parametrize("kind", ["roberta", "modernbert"], indirect=True)
def test_an_import_is_pretrained_on_fine_tuned_and_leaves_as_what_it_was(
    created, kind, answers, speeches, folders, run_peer, tmp_path
):
    (tmp_path / "text").mkdir()
    for path in speeches[:20]:
        shutil.copy(path, tmp_path / "text")
    out = tmp_path / "exported" / kind / "ForMaskedLM"
    as_in_the_readme(tmp_path, created / kind / "bfloat16", out)
    ids, mask = answers["ids_128"], answers["mask_128"]
    params, config = opened(out)
    logits = jax.jit(lambda params: forward(config, params, jnp.asarray(ids, jnp.int32), mask)[1])(params)
    np.savez(out.with_suffix(".npz"), ids=ids, mask=mask, logits=logits)
    run_peer("interop_families.py", "tasks", tmp_path / "exported")  # transformers loads it without a warning
    back = read_folder(out)
    jax.tree.map(np.testing.assert_array_equal, back.params(), open_run(tmp_path / "runs" / "trial", print).params())
    assert open_run(tmp_path / "runs" / "trial", print).config.dropping.method == "sctd"
    written = json.loads((out / "config.json").read_text())
    assert written["architectures"] == [f"{names.LAYOUTS[kind].classes}ForMaskedLM"]
    assert {**written, **config_of(created, kind), "torch_dtype": 0} == {
        **config_of(created, kind), **written, "torch_dtype": 0
    }  # fmt: skip

    finetuning.run(out, tmp_path / "tuned", "cb", folders["cb"], epochs=1, max_length=32)
    export(tmp_path / "tuned", tmp_path / "cb")
    written = json.loads((tmp_path / "cb" / "config.json").read_text())
    assert written["architectures"] == [f"{names.LAYOUTS[kind].classes}ForSequenceClassification"]
    card = (tmp_path / "cb" / "README.md").read_text()
    assert f"Encoder: {names.LAYOUTS[kind].title}, fine-tuned on cb" in card and f"- {kind}\n" in card
    assert read_folder(tmp_path / "cb").params().keys() == {"encoder", "pooler"}


@needs_peer
def test_fine_tuned_heads_are_those_of_the_familys_own_classes(tmp_path, rows, run_peer):
    """Random parameters of our task models, what `transformers` makes of them, and what an import of them takes."""
    ids, mask = (np.asarray(x) for x in (helpers.random_rows(3, pad=True), helpers.random_rows(3, pad=True) != 0))
    for kind in KINDS[1:]:  # BERT's are those that tests/test_finetune_export.py trains
        family = {"model__global_every": 3, "model__local_attention": 8} if kind == "modernbert" else {}
        config = helpers.config(
            dropping__method="full", model__family=kind, model__type_vocab_size=1, model__num_layers=2, **family
        ).model
        for head, outputs in ((names.SEQUENCE, 3), (names.CHOICE, 1), (names.ANSWER, 2), (names.TOKEN, 5)):
            network = TaskModel(config, outputs, each_token=head in (names.ANSWER, names.TOKEN))
            inputs = ids, mask, np.zeros_like(ids)
            shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
            params = helpers.moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), 0.2)
            folder = tmp_path / kind / head
            folder.mkdir(parents=True)
            architecture = names.LAYOUTS[kind].classes + head
            settings = {"architectures": [architecture], "id2label": {str(i): str(i) for i in range(outputs)}}
            table = names.task_names(config, head)
            write.write_folder(folder, config, params, tokenizer.find(rows), table=table, settings=settings)
            assert sum(len(paths) for paths in table.values()) == len(jax.tree.leaves(params))
            logits = jax.jit(network.apply)({"params": params}, *inputs)
            np.savez(folder.with_suffix(".npz"), ids=ids, mask=mask, logits=logits)
            back = read_folder(folder)
            assert not back.has_head
            parts = ("encoder", *(["pooler"] if "pooler" in params else []))
            assert back.params().keys() == set(parts)
            jax.tree.map(np.testing.assert_array_equal, back.params(), {name: params[name] for name in parts})
    run_peer("interop_families.py", "tasks", tmp_path)
