"""Run in the isolated environment of tests/requirements-interop.txt: does `transformers` see the model that we do?

python tests/interop_check.py EXPORTED EXPECTED.npz

EXPECTED holds, from our side: `lines` (texts), `line_ids` (their ids, concatenated, without [CLS] and [SEP]),
`line_lengths`, and for a padded batch with two segments `ids`, `mask`, `segments`, `logits`; and for fill-mask `prompt`
and `top5` (ids).
"""

import sys
import warnings

import numpy as np
import torch
import transformers
from interop_card import check_card
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline


def main(folder: str, expected_path: str) -> None:
    expected = np.load(expected_path, allow_pickle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    model.eval()

    ids = tokenizer(expected["lines"].tolist(), add_special_tokens=False)["input_ids"]
    theirs = np.split(expected["line_ids"], np.cumsum(expected["line_lengths"])[:-1])
    different = [i for i, (a, b) in enumerate(zip(ids, theirs, strict=True)) if list(a) != b.tolist()]
    print(f"lines: {len(ids)}, tokenised differently: {len(different)}")
    assert not different, [(str(expected["lines"][i]), ids[i], theirs[i].tolist()) for i in different[:3]]

    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(expected["ids"]),
            attention_mask=torch.tensor(expected["mask"]).long(),
            token_type_ids=torch.tensor(expected["segments"]),
        ).logits.numpy()
    real = expected["mask"].astype(bool)
    deviation = np.abs(logits - expected["logits"])[real].max()
    print(f"logits: largest deviation {deviation:.2e}")
    assert deviation < 1e-4

    pair = tokenizer("one two", "three", return_tensors="np")
    assert (
        pair["token_type_ids"][0].tolist()
        == [0] * (pair["token_type_ids"][0] == 0).sum() + [1] * (pair["token_type_ids"][0] == 1).sum()
    )
    assert pair["token_type_ids"].max() == 1
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=5)
    guesses = [guess["token"] for guess in fill(str(expected["prompt"]))]
    print(f"fill-mask: {[tokenizer.convert_ids_to_tokens(g) for g in guesses]}")
    assert guesses == expected["top5"].tolist(), (guesses, expected["top5"].tolist())

    texts = [line[:40] for line in expected["lines"].tolist()[:3]]  # the model takes 32 tokens
    ours = [model.bert(**tokenizer(text, return_tensors="pt"))[0][0].mean(0).detach().numpy() for text in texts]
    deviation = np.abs(SentenceTransformer(folder).encode(texts) - np.stack(ours)).max()
    print(f"sentence-transformers' embeddings and the mean of the token vectors: largest deviation {deviation:.2e}")
    assert deviation < 1e-4
    print(f"the card's code: {check_card(folder)[:80]}")
    print(f"interop with transformers {transformers.__version__}: ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
