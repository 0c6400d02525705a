"""Small folders in the official layout of every task, for tests: the same few English sentences each time.

What separates the labels is in the words, so that a network can learn them.
"""

import csv
import json
from pathlib import Path

from sctd_jax.tasks.table import TASKS

SIZES = {"train": 12, "dev": 6, "test": 4}
_PEOPLE = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta")
_TOWNS = ("Rotterdam", "Lyon", "Kraków", "Porto", "Bergen")
_FOODS = ("soup", "bread", "cheese", "fish")
_GOOD, _BAD = ("delicious", "wonderful", "excellent"), ("awful", "terrible", "disgusting")
_THREE = ("entailment", "neutral", "contradiction")


def write_task(root, name: str, sizes: dict[str, int] = SIZES) -> Path:
    """Write the files of a task under root/OFFICIAL FOLDER (root/own for the user's tasks); returns that folder.

    `sizes` are rows of each split; multirc and record have several examples a row.
    """
    folder = Path(root, TASKS[name].folder or "own")
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        _WRITERS.get(name, _superglue)(folder, name, split, size)
    for places in TASKS[name].diagnostics.values():
        place = folder.parent / places[0]
        place.parent.mkdir(exist_ok=True)
        rows = [(i, first, second) for i, (first, second, _) in enumerate(_hypotheses(3))]
        if place.suffix == ".tsv":
            _write_tsv(place, ("index", "sentence1", "sentence2"), rows)
        else:  # they have their labels in them, which are not read
            fields = ("sentence1", "sentence2") if place.stem == "AX-b" else ("premise", "hypothesis")
            _write_jsonl(place, [{"idx": i, fields[0]: a, fields[1]: b, "label": "entailment"} for i, a, b in rows])
    return folder


def _pick(values, number: int):
    return values[number % len(values)]


def _meal(number: int) -> tuple[str, str, str, bool]:
    """(person, food, adjective, whether it is good) of a row."""
    good = number % 2 == 0
    return _pick(_PEOPLE, number), _pick(_FOODS, number), _pick(_GOOD if good else _BAD, number // 2), good


def _write_tsv(path: Path, header, rows) -> None:
    lines = ["\t".join(str(value) for value in row) for row in ([header] if header else []) + list(rows)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _write_jsonl(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _cola(folder: Path, name: str, split: str, size: int) -> None:
    sentences = [
        f"{_pick(_PEOPLE, i)} gave {_pick(_PEOPLE, i + 2)} the {_pick(_FOODS, i)}."
        if i % 2 == 0
        else f"{_pick(_PEOPLE, i)} the {_pick(_FOODS, i)} gave to."
        for i in range(size)
    ]
    if split == "test":
        _write_tsv(folder / "test.tsv", ("index", "sentence"), enumerate(sentences))
        return
    rows = [("gj04", 1 - i % 2, "*" if i % 2 else "", text) for i, text in enumerate(sentences)]
    _write_tsv(folder / f"{split}.tsv", None, rows)


def _sst2(folder: Path, name: str, split: str, size: int) -> None:
    meals = [_meal(i) for i in range(size)]
    texts = [f'{person.lower()} calls the {food} " {word} ' for person, food, word, _ in meals]  # an open quote
    if split == "test":
        _write_tsv(folder / "test.tsv", ("index", "sentence"), enumerate(texts))
    else:
        rows = [(text, int(good)) for text, (*_, good) in zip(texts, meals, strict=True)]
        _write_tsv(folder / f"{split}.tsv", ("sentence", "label"), rows)


def _paraphrases(size: int) -> list[tuple[str, str, bool]]:
    rows = []
    for i in range(size):
        person, food, word, same = _meal(i)
        other = f"{person} says that the {food} is {word}." if same else f"{_pick(_TOWNS, i)} lies at the river."
        rows.append((f"The {food} is {word}, {person} says.", other, same))
    return rows


def _mrpc(folder: Path, name: str, split: str, size: int) -> None:
    header = ("index" if split == "test" else "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    rows = [
        (i if split == "test" else int(same), 1000 + i, 2000 + i, first, second)
        for i, (first, second, same) in enumerate(_paraphrases(size))
    ]
    _write_tsv(folder / f"{split}.tsv", header, rows)


def _stsb(folder: Path, name: str, split: str, size: int) -> None:
    header = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
    rows = []
    for i, (first, second, same) in enumerate(_paraphrases(size)):
        score = [] if split == "test" else [f"{(4 if same else 0) + i % 5 / 5:.3f}"]
        rows.append([i, "main-captions", "MSRvid", "2012test", f"{i:04d}", "none", "none", first, second, *score])
    _write_tsv(folder / f"{split}.tsv", header + ([] if split == "test" else ["score"]), rows)


def _qqp(folder: Path, name: str, split: str, size: int) -> None:
    if split == "test":
        rows = [(i, first, second) for i, (first, second, _) in enumerate(_questions(size))]
        _write_tsv(folder / "test.tsv", ("id", "question1", "question2"), rows)
        return
    rows = [
        (100 + i, 2 * i, 2 * i + 1, first, second, int(same))
        for i, (first, second, same) in enumerate(_questions(size))
    ]
    if split == "train":  # as the official file has them: a question with a newline in it
        rows[2:2] = [
            (
                99,
                198,
                199,
                'How do I learn "',
            ),
            ('"', "What is a river?", 0),
        ]
    header = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    _write_tsv(folder / f"{split}.tsv", header, rows)


def _questions(size: int) -> list[tuple[str, str, bool]]:
    rows = []
    for i in range(size):
        food, same = _pick(_FOODS, i), i % 2 == 0
        second = f"What is the way to make {food}?" if same else f"Where is {_pick(_TOWNS, i)}?"
        rows.append((f"How do I make {food}?", second, same))
    return rows


def _hypotheses(size: int) -> list[tuple[str, str, str]]:
    rows = []
    for i in range(size):
        person, town, kind = _pick(_PEOPLE, i), _pick(_TOWNS, i), i % 3
        hypothesis = (f"{person} lives in a town.", f"{person} likes music.", f"{person} never lived in {town}.")[kind]
        rows.append((f"{person} lives in {town} with two children.", hypothesis, _THREE[kind]))
    return rows


def _mnli(folder: Path, name: str, split: str, size: int) -> None:
    header = [
        "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
        "sentence2_parse", "sentence1", "sentence2",
    ]  # fmt: skip
    for part in {"train": ["train"]}.get(split, [f"{split}_matched", f"{split}_mismatched"]):
        labels = {"train": ["label1"], "dev": [f"label{n}" for n in range(1, 6)], "test": []}[split]
        rows = []
        for i, (first, second, label) in enumerate(_hypotheses(size)):
            given = [] if split == "test" else [label] * (len(labels) + 1)
            genre = "travel" if part.endswith("mismatched") else "fiction"
            rows.append([i, f"{i}", f"{i}n", genre, "( a )", "( b )", "(S a)", "(S b)", first, second, *given])
        _write_tsv(folder / f"{part}.tsv", header + labels + ([] if split == "test" else ["gold_label"]), rows)


def _glue_pair(folder: Path, name: str, split: str, size: int) -> None:
    """QNLI, RTE and WNLI."""
    fields = ("question", "sentence") if name == "qnli" else ("sentence1", "sentence2")
    rows = []
    for i in range(size):
        person, town, holds = _pick(_PEOPLE, i), _pick(_TOWNS, i), i % 2 == 0
        first = f"Where does {person} live?" if name == "qnli" else f"{person} lives in {town} with two children."
        second = f"{person} lives in {town}." if holds else f"The {_pick(_FOODS, i)} is cold."
        label = int(holds) if name == "wnli" else ("entailment" if holds else "not_entailment")
        rows.append([i, first, second] + ([] if split == "test" else [label]))
    _write_tsv(folder / f"{split}.tsv", ["index", *fields] + ([] if split == "test" else ["label"]), rows)


def _superglue(folder: Path, name: str, split: str, size: int) -> None:
    rows = []
    for i in range(size):
        row, label = _SUPERGLUE[name](i, split)
        if label is not None and split != "test":
            row["label"] = label
        rows.append({**row, "idx": i})
    _write_jsonl(folder / {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl"}[split], rows)


def _boolq(i: int, split: str):
    town, food, holds = _pick(_TOWNS, i), _pick(_FOODS, i), i % 2 == 0
    passage = f"{town} -- {town} is {'' if holds else 'not '}known for its {food}. It lies at a river."
    return {"question": f"is {town} known for {food}", "passage": passage}, holds


def _cb(i: int, split: str):
    person, town = _pick(_PEOPLE, i), _pick(_TOWNS, i)
    verb, label = (("knows", "entailment"), ("doubts", "contradiction"), ("asks", "neutral"))[i % 3]
    return {"premise": f"{person} {verb} that the train goes to {town}.", "hypothesis": f"it goes to {town}"}, label


def _copa(i: int, split: str):
    person, cause, right = _pick(_PEOPLE, i), i % 2 == 0, i // 2 % 2
    good = f"{person} had eaten nothing." if cause else f"{person} ate the {_pick(_FOODS, i)}."
    choices = [f"The river was wide in {_pick(_TOWNS, i)}."] * 2
    choices[right] = good
    row = {"premise": f"{person} was hungry.", "choice1": choices[0], "choice2": choices[1]}
    return {**row, "question": "cause" if cause else "effect"}, right


def _superglue_rte(i: int, split: str):
    person, town, holds = _pick(_PEOPLE, i), _pick(_TOWNS, i), i % 2 == 0
    second = f"{person} lives in {town}." if holds else f"The {_pick(_FOODS, i)} is cold."
    return {"premise": f"{person} lives in {town} with two children.", "hypothesis": second}, (
        "entailment" if holds else "not_entailment"
    )


def _wic(i: int, split: str):
    same = i % 2 == 0
    first = f"{_pick(_PEOPLE, i)} sat on the bank of the river."
    second = f"The banks of the river at {_pick(_TOWNS, i)} are green." if same else "The banks lend money."
    row = {"word": "bank", "sentence1": first, "sentence2": second, "version": 1.1}
    return {**row, "start1": first.index("bank"), "end1": first.index("bank") + 4, "start2": 4, "end2": 9}, same


def _wsc(i: int, split: str):
    first, second, same = _pick(_PEOPLE, i), _pick(_PEOPLE, i + 1), i % 2 == 0
    text = f"{first} thanked Uncle {second}, because {'she' if same else 'he'} got help."
    target = {"span1_index": 0, "span1_text": first, "span2_index": 5, "span2_text": "she" if same else "he"}
    return {"text": text, "target": target}, same


def _multirc(i: int, split: str):
    person, town, food = _pick(_PEOPLE, i), _pick(_TOWNS, i), _pick(_FOODS, i)
    asked = (
        (f"Where does {person} live?", ((town, 1), ("In the sea", 0))),
        ("What is cold?", ((food, 1), ("The car", 0), ("The sun", 0))),
    )
    questions = []
    for number, (question, answers) in enumerate(asked):
        options = []
        for text, label in answers:
            option = {"text": text, "idx": 5 * i + 2 * number + len(options)}
            options.append(option if split == "test" else {**option, "label": label})
        questions.append({"question": question, "answers": options, "idx": 2 * i + number})
    return {"passage": {"text": f"{person} lives in {town}. The {food} is cold.", "questions": questions}}, None


def _record(i: int, split: str):
    person, other, town = _pick(_PEOPLE, i), _pick(_PEOPLE, i + 1), _pick(_TOWNS, i)
    text = f"{person} met {other} in {town}.\n@highlight\n{person} is the mayor of {town}"
    entities, mentions = [], {}
    for entity in (person, other, town):
        start = -1
        while (start := text.find(entity, start + 1)) >= 0:
            entities.append({"start": start, "end": start + len(entity) - 1})
            mentions.setdefault(entity, []).append({**entities[-1], "text": entity})
    queries = []
    for number, (query, answer) in enumerate(
        [("The mayor is called @placeholder.", person), ("They met in @placeholder.", town)]
    ):
        qa = {"query": query, "idx": 2 * i + number}
        queries.append(qa if split == "test" else {**qa, "answers": mentions[answer]})
    return {"source": "CNN", "passage": {"text": text, "entities": entities}, "qas": queries}, None


_SUPERGLUE = {
    "boolq": _boolq, "cb": _cb, "copa": _copa, "multirc": _multirc, "record": _record, "wic": _wic, "wsc": _wsc,
    "superglue_rte": _superglue_rte,
}  # fmt: skip


def _squad(folder: Path, name: str, split: str, size: int) -> None:
    if split == "test":
        return  # nobody but its authors has it
    version = {"squad1": "1.1", "squad2": "2.0"}[name]
    paragraphs = []
    for i in range(size):
        town, person = _pick(_TOWNS, i), _pick(_PEOPLE, i)
        context = f"The town of {town} was founded by “{person}” in {1200 + i}. It lies at a river."
        answers = [{"text": str(1200 + i), "answer_start": context.index(str(1200 + i))}]
        if split == "dev":
            answers.append({"text": f"in {1200 + i}", "answer_start": context.index(f"in {1200 + i}")})
        question = {"id": f"{split}{i:020d}", "question": f"When was {town} founded?", "answers": answers}
        if version == "2.0":
            question["is_impossible"] = i % 3 == 2
            if i % 3 == 2:
                question |= {"question": "Who burnt it down?", "answers": [], "plausible_answers": answers}
        paragraphs.append({"context": context, "qas": [question]})
    data = {"data": [{"title": "Towns", "paragraphs": paragraphs}], "version": version}
    (folder / f"{split}-v{version}.json").write_text(json.dumps(data), encoding="utf-8")


def _endings(i: int) -> tuple[str, str, list[str], int]:
    """(context, start of the completion, four endings, the right one)."""
    person, food, right = _pick(_PEOPLE, i), _pick(_FOODS, i), i % 4
    endings = ["swims across the moon.", "turns into a stone, slowly.", 'says "blue" to a door.', "flies to a hat."]
    endings[right] = f"eats the {food}."
    return f"{person} sits down with the {food}.", "She", endings, right


def _swag(folder: Path, name: str, split: str, size: int) -> None:
    header = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]
    header += [f"ending{number}" for number in range(4)] + ([] if split == "test" else ["label"])
    with open(folder / f"{'val' if split == 'dev' else split}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for i in range(size):
            first, start, endings, right = _endings(i)
            row = [i, f"anetv_{i}", 100 + i, f"{first} {start}", first, start, "gold", *endings]
            writer.writerow(row + ([] if split == "test" else [right]))


def _hellaswag(folder: Path, name: str, split: str, size: int) -> None:
    rows = []
    for i in range(size):
        first, start, endings, right = _endings(i)
        start = start if i % 2 == 0 else ""  # ActivityNet's contexts have two parts, WikiHow's one
        row = {"ind": 10 + i, "activity_label": "Eating", "ctx_a": first, "ctx_b": start}
        row |= {"ctx": f"{first} {start}".strip(), "split": split, "split_type": "indomain", "endings": endings}
        rows.append(row if split == "test" else {**row, "label": right})
    _write_jsonl(folder / f"hellaswag_{'val' if split == 'dev' else split}.jsonl", rows)


def _own(folder: Path, name: str, split: str, size: int) -> None:
    with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text"] if split == "test" else ["text", "label"])
        for i in range(size):
            person, food, word, good = _meal(i)
            label = ("positive" if good else "negative") if name == "classification" else (4 if good else 0) + i % 3 / 4
            row = [f"The {food} is {word},\n{person} says.", label]
            writer.writerow(row[: 1 if split == "test" else 2])


def _ner(folder: Path, name: str, split: str, size: int) -> None:
    """CoNLL-2003's four columns, in IOB2."""
    lines = ["-DOCSTART- -X- -X- O", ""]
    for i in range(size):
        person, town = _pick(_PEOPLE, i), _pick(_TOWNS, i)
        words = [(person, "B-PER"), ("Smith", "I-PER"), ("lives", "O"), ("in", "O"), (town, "B-LOC"), (".", "O")]
        lines += [*(f"{word} NN I-NP {tag}" for word, tag in words), ""]
    (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")


def _tagging(folder: Path, name: str, split: str, size: int) -> None:
    """CoNLL-U, with a comment, a word of two and an omitted one."""
    lines = []
    for i in range(size):
        words = [(_pick(_PEOPLE, i), "PROPN"), ("does", "AUX"), ("not", "PART"), ("eat", "VERB"), (".", "PUNCT")]
        lines.append("# text = ...")
        for number, (word, tag) in enumerate(words, 1):
            if word == "does":
                lines.append(f"2-3\tdoesn't{8 * chr(9)}")
            lines.append("\t".join((str(number), word, "_", "_" if split == "test" else tag, *"______")))
        lines += ["5.1\tfood\t_\tNOUN" + 6 * "\t_", ""]
    (folder / f"{split}.conllu").write_text("\n".join(lines), encoding="utf-8")


def _imdb(folder: Path, name: str, split: str, size: int) -> None:
    """Folders of the official archive, which has no dev set, with its numbering: NUMBER_STARS.txt."""
    if split == "dev":
        return
    for i in range(size):
        person, food, word, good = _meal(i)
        path = folder / "aclImdb" / split / ("pos" if good else "neg") / f"{i}_{9 if good else 2}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"The {food} is {word}.<br /><br />{person} says so.", encoding="utf-8")


def _sst5(folder: Path, name: str, split: str, size: int) -> None:
    """Trees of the Penn Treebank's kind."""
    trees = []
    for i in range(size):
        _, food, word, good = _meal(i)
        label = (3 + i // 2 % 2) if good else i // 2 % 3
        trees.append(f"({label} (2 (2 The) (2 {food})) ({label} (2 is) ({label} ({label} {word}) (2 -LRB-))))")
    (folder / f"{split}.txt").write_text("\n".join(trees) + "\n", encoding="utf-8")


def _xnli(folder: Path, name: str, split: str, size: int) -> None:
    """Dev and test of several languages in one file each, the training file of each language by itself."""
    if split == "train":
        rows = [(a, b, label.replace("ion", "ory")) for a, b, label in _hypotheses(size)]
        rows = [(a, b, "entailment" if label == "entailment" else label) for a, b, label in rows]
        (folder / "multinli").mkdir()
        _write_tsv(folder / "multinli" / "multinli.train.en.tsv", ("premise", "hypo", "label"), rows)
        return
    header = ("language", "gold_label", "sentence1_binary_parse", "sentence1", "sentence2", "promptID")
    rows = [
        (language, label, "", f"{language}: {a}", b, i)
        for i, (a, b, label) in enumerate(_hypotheses(size))
        for language in ("de", "en")
    ]
    _write_tsv(folder / f"xnli.{split}.tsv", header, rows)


_WRITERS = {
    "imdb": _imdb, "sst5": _sst5, "xnli": _xnli,
    "cola": _cola, "sst2": _sst2, "mrpc": _mrpc, "stsb": _stsb, "qqp": _qqp, "mnli": _mnli, "qnli": _glue_pair,
    "rte": _glue_pair, "wnli": _glue_pair, "squad1": _squad, "squad2": _squad, "swag": _swag, "hellaswag": _hellaswag,
    "classification": _own, "regression": _own, "ner": _ner, "tagging": _tagging,
}  # fmt: skip
