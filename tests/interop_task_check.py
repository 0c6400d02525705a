"""Run in the isolated environment of tests/requirements-interop.txt: fine-tuned models, as `transformers` sees them.

python tests/interop_task_check.py FOLDER

FOLDER holds for each model an export NAME and NAME.json with `class`, `first` and `second` (texts; `second` may be
null; of multiple choice, lists of one for each choice), `logits` as we compute them, and `labels`; of words `spans`,
for each text the type and the text of each entity that we find, and `words`, sentences of a word and our label of it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from interop_card import check_card


def check(export: Path, expected: dict) -> float:
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    model, info = getattr(transformers, expected["class"]).from_pretrained(export, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (export.name, kind, info[kind])
    assert type(model).__name__ == json.loads((export / "config.json").read_text())["architectures"][0]
    if expected["labels"]:
        assert [model.config.id2label[i] for i in range(model.config.num_labels)] == expected["labels"]
        assert [model.config.label2id[label] for label in expected["labels"]] == list(range(len(expected["labels"])))
    inputs = tokenizer(expected["first"], expected["second"], padding=True, return_tensors="pt")
    if "MultipleChoice" in expected["class"]:
        inputs = {name: value[None] for name, value in inputs.items()}
    with torch.no_grad():
        found = model.eval()(**inputs)
    if "QuestionAnswering" in expected["class"]:
        logits = torch.stack([found.start_logits, found.end_logits], dim=-1)
    else:
        logits = found.logits
    if "spans" in expected:
        find = transformers.pipeline(
            "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple"
        )
        for text, spans in zip(expected["first"], expected["spans"], strict=True):
            theirs = [[e["entity_group"], text[e["start"] : e["end"]].strip()] for e in find(text)]
            assert theirs == spans, (theirs, spans)
        for rows in expected["words"]:
            said = check_card(export, "Anna lives in Rotterdam .", " ".join(word for word, _ in rows))
            assert [line.split() for line in said.splitlines()] == rows, (said, rows)
    return float(np.abs(logits.numpy() - np.array(expected["logits"])).max())


def main(folder: str) -> None:
    for path in sorted(Path(folder).glob("*.json")):
        deviation = check(path.with_suffix(""), json.loads(path.read_text()))
        print(f"{path.stem}: logits' largest deviation {deviation:.2e}; {check_card(path.with_suffix(''))[:80]}")
        assert deviation < 1e-4
    print(f"fine-tuned models in transformers {transformers.__version__}: ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
