"""Models of the Hugging Face hub: pushed, downloaded and refused, through the hub's own library and over loopback.

tests/fake_hub.py stands in for the hub. It has no Xet storage, so that uploads go by LFS here; the hub's library takes
Xet where hf_xet is installed.
"""

import json
import shutil
import socket
import sys

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors import numpy as safetensors

from sctd_jax.data.rows import METADATA_FILE
from sctd_jax.errors import UserError
from sctd_jax.hf import hub as hubs
from sctd_jax.interop import exporting, exporting_task, huggingface
from sctd_jax.models import open_init, open_run
from tests import fake_hub, finetuning, helpers, task_files

# The environment is set before the hub's library is imported, which reads all but the token once.
_RUN = """
import contextlib, io, json, os, runpy, sys
environment, seconds, command_lines = json.loads(sys.argv[1])
os.environ.update(environment)
from sctd_jax.hf import hub
hub.SECONDS = seconds
answers = []
for token, *arguments in command_lines:
    os.environ["HF_TOKEN"] = token
    sys.argv, sys.orig_argv = arguments, ["python", "-m", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        except SystemExit as error:
            status = error.code
    answers.append([status, stdout.getvalue(), stderr.getvalue()])
print(json.dumps(answers))
"""
EXPORT, IMPORT = (("sctd_jax.interop.huggingface", command) for command in ("export", "import"))


@pytest.fixture(scope="module")
def fork():
    clean = {name: value for name, value in helpers.environment().items() if not name.startswith(("HF_", "HUGGING"))}
    preload = ("sctd_jax.interop.huggingface", "sctd_jax.finetune.finetuning")
    with helpers.forking(sys.executable, preload, clean) as run:
        yield run


@pytest.fixture
def hub():
    with fake_hub.serve(fake_hub.Hub()) as found:
        yield found


@pytest.fixture
def run(fork, hub, tmp_path):
    """Run command lines, each after its token, in a process of their own: [(exit status, stdout, stderr)]."""

    def run(*command_lines, seconds=30, **environment):
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        own |= {"HF_HUB_DISABLE_XET": "1", **environment}  # the stand-in has none
        done = fork(["-c", _RUN, json.dumps([own, seconds, [list(map(str, line)) for line in command_lines]])])
        assert done.returncode == 0, done.stdout + done.stderr
        answers = [tuple(answer) for answer in json.loads(done.stdout)]
        assert not [answer for answer in answers if "Traceback" in answer[2] or "hf_writer" in "".join(answer[1:])]
        return answers

    return run


@pytest.fixture(scope="module")
def workdir(pretrained, rows, tmp_path_factory):
    """A run at step 0 that has been evaluated."""
    folder = shutil.copytree(pretrained, tmp_path_factory.mktemp("evaluated") / "run")
    shutil.copy(rows / METADATA_FILE, folder)
    metrics = {"eval/loss": 6.25, "eval/below_unigram": -1.5, "eval/accuracy": 0.125}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "seconds": 1.0, **metrics}) + "\n")
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """The content of its export, by name."""
    out = tmp_path_factory.mktemp("exported") / "model"
    exporting.export(workdir, out, step=None, force=False, log=lambda line: None)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def lines(text):
    return text.strip().splitlines()


def pushing(workdir, out, *repo_and_options, token="hf_writer"):
    return (token, *EXPORT, "--workdir", workdir, "--out", out, "--push", *repo_and_options)


def importing(name, workdir, token="hf_reader"):
    return (token, *IMPORT, "--from", name, "--workdir", workdir, "--config", "tests/small.py")


def test_a_pushed_export_comes_back_with_equal_weights(hub, run, workdir, tmp_path):
    push = pushing(workdir, tmp_path / "out", "org/tiny", "--private", "--license", "mit")
    first, again = run(push, (*push, "--force"))
    assert first[0] == again[0] == 0, (first, again)
    (repo,) = hub.repos.values()
    *_, (commit, there) = repo.commits
    assert repo.private and repo.messages == ["", "Export of run by sctd_jax"]  # that of the hub itself, and ours
    out = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert there == {".gitattributes": b"", **out}
    assert {"model.safetensors", "README.md"} < out.keys() and not [name for name in out if name.endswith(".bin")]
    assert f"pushed {len(out)} files" in first[1] and f"/org/tiny: commit {commit}, the repository is new" in first[1]
    assert "nothing to push" in again[1] and f"in commit {commit}" in again[1]
    assert first[2] == again[2] == ""
    assert hub.leaks == []  # the token went to the API alone
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_writer" in path.read_bytes()]
    assert written == []

    card = ModelCard(there["README.md"].decode()).data
    found = {one.metric_type: (one.metric_value, one.dataset_type, one.task_type) for one in card.eval_results}
    assert found == {
        name: (value, "unknown", "fill-mask")
        for name, value in (("loss", 6.25), ("below_unigram", -1.5), ("accuracy", 0.125))
    }
    assert (card.license, card.library_name, card.model_name) == ("mit", "transformers", "run")

    home = {"HF_HOME": str(tmp_path / "another")}
    (done,) = run(importing("hf:org/tiny", tmp_path / "again"), **home)
    assert done[0] == 0, done[2]
    snapshot = tmp_path / "another" / "hub" / "models--org--tiny" / "snapshots" / commit
    assert f"hf:org/tiny is hf:org/tiny@{commit}, in {snapshot}" in lines(done[1])
    assert f"tensors of hf:org/tiny@{commit} to {tmp_path / 'again'}" in done[1] and done[2] == ""
    assert f" --from hf:org/tiny@{commit} " in (tmp_path / "again" / "command.txt").read_text()
    assert {path.name for path in snapshot.iterdir()} == out.keys() - {"README.md"}
    before, after = open_run(workdir, print), open_run(tmp_path / "again", print)
    jax.tree.map(np.testing.assert_array_equal, after.params(), before.params())
    assert after.tokenizer.pieces == before.tokenizer.pieces
    assert hub.leaks == []

    hub.requests.clear()
    command_lines = (
        importing("hf:org/tiny", tmp_path / "2"),
        importing("hf:org/other", tmp_path / "3"),
        (*push, "--force"),
    )
    done, none, refused = run(*command_lines, HF_HUB_OFFLINE="1", **home)
    assert done[0] == 0 and (none[0], refused[0]) == (2, 2)
    assert lines(done[1])[0] == "hf:org/tiny: HF_HUB_OFFLINE is set; the commit is that of the last download"
    assert done[1].count("HF_HUB_OFFLINE") == 1
    (line,) = lines(none[2])
    assert line.startswith("error: hf:org/other: HF_HUB_OFFLINE is set, and ") and "hf download org/other " in line
    assert lines(refused[2]) == ["error: --push org/tiny: HF_HUB_OFFLINE is set, which forbids to push"]
    assert hub.requests == []
    hub.failing = {"": 503}  # the hub is down, and the cache has all
    (done,) = run(importing("hf:org/tiny", tmp_path / "4"), **home)
    assert done[0] == 0
    assert lines(done[1])[0] == "hf:org/tiny: HTTP 503: made to fail; the commit is that of the last download"


def test_a_later_push_replaces_an_earlier_export_and_nothing_else(hub, run, workdir, exported, tmp_path):
    shards = {f"model-0000{i}-of-00002.safetensors": b"old" for i in (1, 2)} | {"model.safetensors.index.json": b"{}"}
    earlier = {name: content for name, content in exported.items() if name != "model.safetensors"} | shards
    before = hub.put("org/tiny", {**earlier, "README.md": b"by hand", "LICENSE": b"MIT", "figures/a.png": b"png"})
    other = json.loads(exported["config.json"]) | {"hidden_size": 768, "hidden_dropout_prob": 0.5}
    hub.put("org/other", {"config.json": json.dumps(other).encode()})
    done, refused = run(pushing(workdir, tmp_path / "out", "org/tiny"), pushing(workdir, tmp_path / "2", "org/other"))
    assert done[0] == 0, done[2]
    repo = hub.repos["org/tiny"]
    assert repo.commits[-1][1] == {".gitattributes": b"", **exported, "LICENSE": b"MIT", "figures/a.png": b"png"}
    assert repo.commits[0][0] == before and repo.commits[0][1]["README.md"] == b"by hand" and len(repo.commits) == 2
    *_, pushed, deleted, left = lines(done[1])
    assert f"after {before}, which keeps what was there" in pushed
    assert deleted == f"deleted there: 3 files of an earlier export ({', '.join(sorted(shards))})"
    assert left == "left there as they are: 2 other files (LICENSE, figures/a.png)"
    (line,) = lines(refused[2])
    assert refused[0] == 2 and "has another model (hidden_size 768 there, 32 here): choose another name" in line
    assert len(hub.repos["org/other"].commits) == 1 and (tmp_path / "2" / "model.safetensors").is_file()


def test_what_cannot_be_pushed_is_refused_before_the_export(hub, run, workdir, exported, tmp_path):
    hub.put("org/other-format", {"config.json": exported["config.json"], "pytorch_model.bin": b"\x80"})
    hub.put("org/damaged", {"config.json": b"[1]"})
    hub.put("org/tiny", {})
    hub.put("else/tiny", {})
    cases = [
        ("tiny", "hf_writer", "expected OWNER/NAME"),
        ("a/b/c", "hf_writer", "expected OWNER/NAME"),
        ("org/a--b", "hf_writer", "Cannot have -- or .. in repo_id: 'org/a--b'"),
        ("org/new", "", "no token is there: hf auth login, or HF_TOKEN with one that may write"),
        ("org/new", "hf_unknown", "does not know the token (HTTP 401"),
        ("org/new", "hf_reader", "the token may only read"),
        ("else/tiny", "hf_writer", "does not let this token write there (HTTP 403: you have no right"),
        ("org/other-format", "hf_writer", "has weights that no export replaces (pytorch_model.bin)"),
        ("org/damaged", "hf_writer", "config.json is damaged: an object with fields is expected"),
        ("org/tiny --private", "hf_writer", "is there and public"),
    ]
    answers = run(*(pushing(workdir, tmp_path / "out", *repo.split(" "), token=token) for repo, token, _ in cases))
    for (repo, _, said), (status, _, stderr) in zip(cases, answers, strict=True):
        (line,) = lines(stderr)
        assert status == 2
        assert line.startswith(f"error: --push {repo.removesuffix(' --private')}: ") and said in line, line
    assert not (tmp_path / "out").exists()
    assert [request for request in hub.requests if request.startswith(("POST", "PUT"))] == []
    done = helpers.call(huggingface.main, "export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--private")
    assert done.returncode == 2 and "--private is for --push" in done.stderr


def test_a_push_that_fails_midway_changes_nothing_and_can_be_done_again(hub, run, workdir, tmp_path):
    cases = {
        "else/new": ("nothing of it", 0, 2, "does not let this token write there (HTTP 403: you have no right"),
        "org/upload": (r"POST /org/upload\.git/", 403, 2, "does not let this token write there (HTTP 403: made"),
        "org/storage": ("POST .*/org/storage/preupload", 400, 2, "refuses it (HTTP 400: made to fail)"),
        "org/commit": ("POST .*/org/commit/commit/", 500, 75, "failed (HTTP 500: made to fail)"),
        "org/dead": ("POST .*/org/dead/commit/", 0, 75, "cannot be reached (Server disconnected"),
        "org/moved": ("POST .*/org/moved/commit/", 412, 2, "has a newer commit than before the export"),
    }
    hub.failing = {pattern: status for pattern, status, *_ in cases.values()}
    answers = run(*(pushing(workdir, tmp_path / "out", repo, "--force") for repo in cases))
    for (repo, (_, _, exit_status, said)), (status, _, stderr) in zip(cases.items(), answers, strict=True):
        (line,) = lines(stderr)
        assert status == exit_status and line.startswith(f"error: --push {repo}: ") and said in line, line
        assert line.endswith(f"the export is in {tmp_path / 'out'}, and the same command with --force tries again")
        assert (f"{repo} is new and empty" in line) == (repo != "else/new")
    assert [list(repo.commits[-1][1]) for repo in hub.repos.values()] == [[".gitattributes"]] * (len(cases) - 1)
    hub.failing = {}
    ((found, stdout, _),) = run(pushing(workdir, tmp_path / "out", "org/dead", "--force"))
    assert found == 0 and "pushed 7 files" in stdout


def test_what_cannot_be_downloaded_is_said_in_one_line(hub, run, exported, tmp_path):
    hub.put("org/private", exported, private=True)
    hub.put("org/gated", exported, gated=True)
    hub.put("org/tiny", exported)
    pickled = {name: content for name, content in exported.items() if name != "model.safetensors"}
    hub.put("org/pickle", pickled | {"pytorch_model.bin": b"\x80"})
    hub.put("org/elmo", exported | {"config.json": b'{"model_type": "elmo"}'})
    hub.put("org/bare", {"model.safetensors": b""})
    cases = [
        ("hf:org/none", "", "has no such model, or not for you (HTTP 401"),
        ("hf:org/private", "", "has no such model, or not for you (HTTP 401"),
        ("hf:org/gated", "hf_reader", "access has to be granted first (HTTP 403"),
        ("hf:org/tiny", "hf_unknown", "does not know the token (HTTP 401: Invalid credentials"),
        ("hf:org/tiny@v2", "", "/org/tiny has no revision v2"),
        (f"hf:org/tiny@{'0' * 40}", "", f"/org/tiny has no revision {'0' * 40}"),
        ("hf:org/pickle", "", "holds no safetensors, and nothing else is read (pytorch_model.bin is there): "),
        ("hf:org/elmo", "", "config.json: model_type is 'elmo', supported are bert"),
        ("hf:org/bare", "", "holds no config.json"),
        ("hf:a/b/c", "", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:org/a..b", "", "Cannot have -- or .. in repo_id"),
    ]
    answers = run(*(importing(name, tmp_path / "run", token) for name, token, _ in cases))
    for (name, _, said), (status, _, stderr) in zip(cases, answers, strict=True):
        (line,) = lines(stderr)
        assert status == 2 and line.startswith(f"error: {name}") and said in line, line
    assert not (tmp_path / "run").exists()
    fetched = [request for request in hub.requests if "/resolve/" in request and "config.json" not in request]
    assert fetched == []  # no weights before all else is known to be right


def test_a_download_that_was_cut_short_is_not_taken_for_the_model(hub, run, exported, tmp_path):
    hub.put("org/tiny", exported)
    hub.failing = {"GET /cdn/": 500}
    (cut,) = run(importing("hf:org/tiny", tmp_path / "run"))
    (line,) = lines(cut[2])
    assert cut[0] == 75 and f"hf:org/tiny: {hub.endpoint} failed (HTTP 500: made to fail); where there is no" in line
    (rest,) = run(importing("hf:org/tiny", tmp_path / "run"), HF_HUB_OFFLINE="1")
    assert rest[0] == 2 and "hub does not have all of it; where there is no network" in rest[2]
    assert not (tmp_path / "run").exists()


def test_without_a_network_one_line_names_the_model_and_the_way_around(run, workdir, tmp_path):
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts, and never answers
        closed.bind(("127.0.0.1", 0))
        for end, seconds, said in ((closed, 30, "Connection refused"), (silent, 0.2, "timed out")):
            endpoint = f"http://127.0.0.1:{end.getsockname()[1]}"
            push = pushing(workdir, tmp_path / "out", "org/tiny")
            answers = run(importing("hf:org/tiny", tmp_path / "run"), push, seconds=seconds, HF_ENDPOINT=endpoint)
            for name, (status, stdout, stderr) in zip(("hf:org/tiny", "--push org/tiny"), answers, strict=True):
                (line,) = lines(stderr)
                assert (status, stdout) == (75, "")
                assert line.startswith(f"error: {name}: {endpoint} cannot be reached (") and said in line
            assert "where there is no network, download it elsewhere (hf download org/tiny " in answers[0][2]
            assert answers[0][2].endswith(" --local-dir tiny) and name the folder\n")
    assert not list(tmp_path.iterdir())


def test_a_fine_tuning_keeps_to_the_commit_that_it_began_with(hub, run, exported, tmp_path):
    other = {name: tensor + 1 for name, tensor in safetensors.load(exported["model.safetensors"]).items()}
    task_files.write_task(tmp_path / "data", "rte")
    first = hub.put("org/tiny", exported)
    settings = finetuning.settings("hf:org/tiny", "rte", tmp_path / "data", epochs=1, learning_rate=1e-3)
    flags = [f"--config.{name}={getattr(settings, name)}" for name in ("task", "data_dir", "max_length", "epochs")]
    tuned = tmp_path / "tuned"
    begun = ["", "sctd_jax.main", "--mode=finetune", "--config=configs/finetune.py", f"--workdir={tuned}", *flags]
    (done,) = run([*begun, "--config.init=hf:org/tiny"])
    assert done[0] == 0, done[2]
    pinned = f"hf:org/tiny@{first}"
    assert {json.loads((tuned / name).read_text())["init"] for name in ("task.json", "result.json")} == {pinned}
    assert f"taken from {pinned}: encoder" in done[1]

    second = hub.put("org/tiny", exported | {"model.safetensors": safetensors.save(other)})
    hub.requests.clear()
    (again,) = run([*begun, "--config.init=hf:org/tiny"], HF_HUB_OFFLINE="1")
    assert again[0] == 0 and f"{pinned} is in " in again[1], again
    assert hub.requests == []
    (moved,) = run([*begun, "--config.init=hf:org/tiny@main"])
    assert moved[0] == 2
    assert f"than those of hf:org/tiny@{second} now (it began with {pinned})" in moved[2]

    exporting.export(tuned, tmp_path / "out", step=None, force=False, log=lambda line: None)
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == ["org/tiny"]


def test_a_run_starts_from_an_import_and_its_card_names_a_base_model_of_the_cache_too():
    with pytest.raises(UserError, match=r"config.train.init hf:org/x: expected the workdir .* import --from hf:org/x "):
        open_init(helpers.config(train__init="hf:org/x"), print)
    for started in ("hf:org/x@v1", "/cache/models--org--x/snapshots/0123"):
        assert exporting_task._base_model(started) == ["org/x"]
    assert exporting_task._base_model("runs/base") == []


@pytest.mark.parametrize(
    ("now", "before", "taken"),
    [
        ("hf:org/x", "hf:org/x@0123", "hf:org/x@0123"),
        ("hf:bert-base-cased", "hf:google-bert/bert-base-cased@0123", "hf:google-bert/bert-base-cased@0123"),
        ("hf:org/x@v2", "hf:org/x@0123", "hf:org/x@v2"),
        ("hf:org/y", "hf:org/x@0123", "hf:org/y"),
        ("hf:org/x", "runs/x", "hf:org/x"),
        ("runs/x", "hf:org/x@0123", "runs/x"),
    ],
)
def test_a_name_without_a_revision_is_that_of_the_beginning(now, before, taken):
    assert hubs.as_begun(now, before) == taken


def test_without_the_library_one_line_names_the_extra(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for what, arguments in (
        ("--push org/x", ("export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--push=org/x")),
        ("hf:org/x", ("import", "--from=hf:org/x", f"--workdir={tmp_path / 'run'}", "--config=tests/small.py")),
    ):
        done = helpers.call(huggingface.main, *arguments)
        said = f"error: {what} needs huggingface_hub: pip install huggingface_hub, or '.[hub]'\n"
        assert (done.returncode, done.stderr) == (2, said)
    assert not list(tmp_path.iterdir())
