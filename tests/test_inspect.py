"""What `data.inspect` says of rows."""

import numpy as np

from sctd_jax.data import inspect, prepare
from sctd_jax.data.packing import Packer
from tests import helpers


def packed(documents, length=16):
    packer, rows = Packer(length, helpers.SPECIAL), []
    for number, ids in enumerate(documents):
        packer.add(np.array(ids, np.int32), number)
        rows += [*packer.full()]
    return np.array([*rows, *packer.finish()])


def test_documents_are_found_again_in_rows_but_for_the_first_and_the_last():
    rng = np.random.default_rng(0)
    documents = [rng.integers(10, 99, size).tolist() for size in (5, 6, 33, 3, 1, 20, 7)]
    found = [ids.tolist() for ids in inspect.documents_in(packed(documents), helpers.SPECIAL)]
    assert found == documents[1:-1]
    fills = [*documents[:2], documents[2][:15], *documents[3:]]  # ends where its row does, which rows do not show
    found = [ids.tolist() for ids in inspect.documents_in(packed(fills), helpers.SPECIAL)]
    assert found == [fills[1], fills[2] + fills[3], *fills[4:-1]]


def test_counts_by_source_copies_and_padding(tmp_path):
    words = ["alpha", "beta", "gamma", "delta"]
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(words, 12)) for _ in range(900)]
    (tmp_path / "a.txt").write_text("\n".join([*lines, *["the same line again and again"] * 40]))
    (tmp_path / "b.txt").write_text("\n".join(" ".join(rng.choice(words, 12)) for _ in range(300)))
    data = helpers.data(input=str(tmp_path), documents="line", tokenizer_type="bpe", seq_len=32, heldout_share=0.1)
    metadata = prepare.prepare(data, 80, tmp_path / "rows", print)
    assert [one["words"] for one in metadata.by_source] == [900 * 12 + 40 * 6, 300 * 12]
    assert sum(one["tokens"] for one in metadata.by_source) == metadata.tokens

    done = helpers.call(inspect.main, str(tmp_path / "rows"), f"--out={tmp_path / 'rows.png'}")
    assert done.returncode == 0, done.stderr
    source = next(line for line in done.stdout.splitlines() if "a.txt" in line).split()
    assert source[1] == "940" and source[4] == f"{metadata.by_source[0]['tokens'] / 11_040:.2f}"
    assert "1,240 documents" in done.stdout
    copies = next(line for line in done.stdout.splitlines() if "copies of others" in line)
    assert int(copies.split(" of them copies")[0].split()[-1]) >= 30  # the line that is there 40 times
    assert "tokens of a document: " in done.stdout and " to " in done.stdout and "#" in done.stdout
    assert sum(any(word in line for word in words) for line in done.stdout.splitlines()[-7:]) == 5  # rows as text
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_an_earlier_version_and_what_cannot_be_written(rows, tmp_path):
    assert helpers.call(inspect.main, str(rows), "--rows=64").returncode == 0
    refused = helpers.call(inspect.main, str(rows), f"--out={rows / 'prepared.json' / 'x.png'}")
    assert (refused.returncode, "cannot write" in refused.stderr) == (2, True)
    refused = helpers.call(inspect.main, str(tmp_path))
    assert (refused.returncode, "holds no prepared rows" in refused.stderr) == (2, True)
