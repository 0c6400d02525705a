"""benchmarks/notes.py, the text of docs/tutorial.md."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from tests import helpers

SCRIPT = helpers.ROOT / "benchmarks" / "notes.py"
SPLITS = ("train", "dev", "test")
# Very common ones.
NAMES = """
James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Thomas Susan Anna Maria Peter
Hans Sofia Mohammed Ahmed Fatima Wei Li Ivan Olga Jean Pierre Marie Carlos Juan Ana Luca Giulia Yuki Hiroshi Priya Raj
Smith Johnson Williams Brown Jones Garcia Miller Davis Wilson Anderson Taylor Mueller Schmidt Schneider Fischer Weber
Wang Zhang Chen Ivanov Petrov Martin Bernard Dubois Rossi Russo Tanaka Sato Suzuki Singh Kumar Silva Santos Nguyen Kim
"""
DRUGS = """
aspirin ibuprofen paracetamol acetaminophen metformin insulin amoxicillin simvastatin atorvastatin lisinopril ramipril
amlodipine metoprolol bisoprolol omeprazole pantoprazole levothyroxine furosemide warfarin apixaban salbutamol
prednisolone sertraline citalopram mirtazapine quetiapine diazepam lorazepam morphine oxycodone tramadol gabapentin
"""


def module():
    """The script, anew."""
    spec = importlib.util.spec_from_file_location("notes", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    sys.modules["notes"] = found  # its dataclasses look there
    spec.loader.exec_module(found)
    return found


def write(out, *options, seed="0"):
    line = [sys.executable, SCRIPT, "--out", out, *options]
    return subprocess.run(line, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "notes"
    done = write(out, "--notes", "600")
    assert done.returncode == 0, done.stderr
    return out


def sentences(notes, split):
    """(words, labels) of each sentence."""
    parts = (notes / "ner" / f"{split}.conll").read_text().strip().split("\n\n")
    return [tuple(map(list, zip(*map(str.split, part.splitlines()), strict=True))) for part in parts]


def entities(notes, split, kind):
    """Texts of the entities of a type, in lower case."""
    return {
        " ".join(words[start : end + 1]).lower()
        for words, tags in sentences(notes, split)
        for found, start, end in get_entities(tags)
        if found == kind
    }


def test_the_same_options_write_the_same_bytes_and_never_over_what_is_there(notes, tmp_path):
    assert write(tmp_path / "again", "--notes", "600", seed="1").returncode == 0
    files = sorted(path.relative_to(notes) for path in notes.rglob("*") if path.is_file())
    assert len(files) == 600 + 4
    assert all((notes / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in files)
    done = write(tmp_path / "again")
    assert done.returncode == 2 and "is there already: give another name, or delete it" in done.stderr


def test_notes_differ_and_no_labelled_sentence_comes_twice_or_stands_in_two_files(notes):
    assert len({path.read_text() for path in (notes / "text").iterdir()}) == 600
    texts = [" ".join(words) for split in SPLITS for words, _ in sentences(notes, split)]
    texts += [" ".join(json.loads(line)["tokens"]) for line in (notes / "new.jsonl").read_text().splitlines()]
    assert len(texts) == len(set(texts)) > 2000


def test_labels_are_iob2_of_four_types(notes):
    for split in SPLITS:
        for words, tags in sentences(notes, split):
            assert len(words) == len(tags)
            for before, tag in zip(["O", *tags], tags, strict=False):
                assert tag[0] != "I" or before[1:] == tag[1:], (words, tags)
        found = {tag for _, tags in sentences(notes, split) for tag in tags} - {"O"}
        assert {tag[2:] for tag in found} == {"DOSE", "DRUG", "PERSON", "SYMPTOM"}


def test_words_are_those_of_the_text_and_entities_whole_words_of_it(notes):
    for line in (notes / "new.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert "".join(row["tokens"]) == "".join(row["text"].split())
    made = module()
    for number in range(50):
        for sentence in (sentence for part in made.make_note("text", number, made.ALL) for sentence in part):
            words, tags = map(list, zip(*sentence.words(), strict=True))
            expected = [(label, made.WORD.findall(sentence.text[i:end])) for i, end, label in sentence.entities]
            assert [(kind, words[i : end + 1]) for kind, i, end in get_entities(tags)] == expected


def test_drugs_and_persons_of_dev_and_test_stand_in_notes_without_labels_and_in_no_training_note(notes):
    text = "\n".join(path.read_text() for path in (notes / "text").iterdir()).lower()
    known = {word.lower() for words, _ in sentences(notes, "train") for word in words}
    for split in ("dev", "test"):
        for kind in ("DRUG", "PERSON"):
            # A drug's second word is its form.
            found = {word for name in entities(notes, split, kind) for word in name.split()[: 1 + (kind == "PERSON")]}
            assert len(found) > 60 and found & known == set()
            # The others are misspelt.
            assert sum(name in text for name in found) > 0.9 * len(found)
        assert entities(notes, split, "SYMPTOM") - entities(notes, "train", "SYMPTOM")


def test_no_person_and_no_drug_is_real():
    made = module()
    assert not {*made.GIVEN, *made.FAMILY} & {*NAMES.split()} and not {*made.DRUGS} & {*DRUGS.split()}
    every = [name.lower() for name in (*made.DRUGS, *made.GIVEN, *made.FAMILY)]
    assert len({name[:4] for name in every}) == len(every) == 480
