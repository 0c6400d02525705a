"""Run in the isolated environment of tests/requirements-interop.txt: each family's models of `transformers`.

python tests/interop_families.py create OUT LINES.txt
python tests/interop_families.py check OUT LINES.txt
python tests/interop_families.py tasks OUT

`create` writes for each kind of model OUT/KIND/{float32,bfloat16,float16}, a random network with a tokenizer, the last
two in shards, and OUT/KIND.npz: for each length N a padded batch of LINES `ids_N`, `mask_N` and its `logits_N`, of the
first length `logits_TYPE_N` too, and `labels`, `loss`, `hidden` [L+1, B, N, D] and the gradient `grad.NAME` of every
parameter. `check` reads what our side exported to OUT/KIND/back and, in shards, OUT/KIND/back_{bfloat16,float16}:
warnings, ids of LINES, logits, and that fill-mask guesses for the `prompt` of OUT/KIND/guesses.npz its ids `top5`.
`tasks` reads OUT/*/HEAD, exports with the head of a task or of pretraining, and OUT/*/HEAD.npz with `ids`, `mask` and
our `logits`.
"""

import copy
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from interop_card import check_card
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

KINDS = {
    "bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert",
    "modernbert": "ModernBert",
}  # fmt: skip
LENGTHS = {"modernbert": (128, 512, 1024, 2048)}
TYPES = ("float32", "bfloat16", "float16")
_VOCABULARY = 900


def lengths(kind: str) -> tuple[int, ...]:
    return LENGTHS.get(kind, (128, 512))


def tokenizer_of(kind: str, lines: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, trained on the lines: WordPiece, byte-level BPE, or SentencePiece's unigram.

    BERT's and RoBERTa's are of their own classes. In all but BERT's the mask takes the space before it, as in theirs.
    """
    if kind in ("bert", "modernbert"):
        special = ["[MASK]", "[SEP]", "[UNK]", "[PAD]", "[CLS]"]
        names = {f"{name.lower()[1:-1]}_token": name for name in special}
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        names = dict(
            zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True)
        )  # fmt: skip
    mask = tokenizers.AddedToken(names["mask_token"], lstrip=True, normalized=False)
    roles = [mask if name == names["mask_token"] else name for name in special]
    if kind == "bert":
        pieces = tokenizers.BertWordPieceTokenizer(lowercase=False)
        pieces.train_from_iterator(lines, vocab_size=_VOCABULARY, special_tokens=special, show_progress=False)
        return transformers.BertTokenizer(vocab=pieces.get_vocab(), do_lower_case=False)
    if kind in ("roberta", "modernbert"):
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=_VOCABULARY, special_tokens=roles, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=_VOCABULARY, special_tokens=roles, show_progress=False, unk_token="<unk>"
        )
    made.train_from_iterator(lines, trainer)
    if kind == "roberta":
        model = json.loads(made.to_str())["model"]
        return transformers.RobertaTokenizer(
            vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], mask_token=mask
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def network_of(kind: str, tokenizer) -> torch.nn.Module:
    ids = {"pad_token_id": tokenizer.pad_token_id}
    if kind != "bert":
        ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 72,
        "initializer_range": 0.15,
    }  # fmt: skip
    longest = max(lengths(kind))
    if kind == "modernbert":
        ids |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        more = {"num_hidden_layers": 7, "max_position_embeddings": longest, "local_attention": 64}
    elif kind == "bert":
        more = {"num_hidden_layers": 4, "max_position_embeddings": longest}
    else:
        places = longest + tokenizer.pad_token_id + 1
        more = {"num_hidden_layers": 4, "max_position_embeddings": places, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(0)
    config = getattr(transformers, f"{KINDS[kind]}Config")(**ids, **sizes, **more)
    network = getattr(transformers, f"{KINDS[kind]}ForMaskedLM")(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms are not 0 and 1 in a model that was trained
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def batch_of(tokenizer, flat: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [3, N] of running text, with padding in the last two rows."""
    ends = (length, length * 2 // 3, length // 5)
    ids = np.full((len(ends), length), tokenizer.pad_token_id)
    for row, end in enumerate(ends):
        ids[row, :end] = [tokenizer.cls_token_id, *flat[row * length :][: end - 2], tokenizer.sep_token_id]
    mask = np.arange(length) < np.array(ends)[:, None]
    return torch.tensor(ids), torch.tensor(mask)


def create(out: Path, lines: list[str]) -> None:
    for kind in KINDS:
        tokenizer = tokenizer_of(kind, lines)
        network = network_of(kind, tokenizer)
        line_ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
        flat = [i for ids in line_ids for i in ids]
        found = {"line_ids": flat, "line_lengths": [len(ids) for ids in line_ids]}
        for i, length in enumerate(lengths(kind)):
            ids, mask = batch_of(tokenizer, flat[i * 500 :], length)
            found |= {f"ids_{length}": ids, f"mask_{length}": mask}
            with torch.no_grad():
                found[f"logits_{length}"] = network(input_ids=ids, attention_mask=mask.long()).logits
        ids, mask = (found[f"{name}_{lengths(kind)[0]}"] for name in ("ids", "mask"))
        labels = torch.where(mask & (torch.arange(ids.shape[1]) % 7 == 3), ids, -100)
        result = network(input_ids=ids, attention_mask=mask.long(), labels=labels, output_hidden_states=True)
        result.loss.backward()
        hidden = torch.stack(result.hidden_states).detach()
        found |= {"labels": labels, "loss": result.loss.detach(), "hidden": hidden}
        found |= {f"grad.{name}": parameter.grad for name, parameter in network.named_parameters()}
        for name in TYPES:
            rounded = copy.deepcopy(network).to(getattr(torch, name))
            size = "1GB" if name == "float32" else "60KB"
            rounded.save_pretrained(out / kind / name, max_shard_size=size)
            assert len(list((out / kind / name).glob("*.safetensors"))) > 3 * (name != "float32")
            tokenizer.save_pretrained(out / kind / name)
            again = AutoModelForMaskedLM.from_pretrained(out / kind / name, dtype=torch.float32).eval()
            with torch.no_grad():
                found[f"logits_{name}_{ids.shape[1]}"] = again(input_ids=ids, attention_mask=mask.long()).logits
        np.savez(out / f"{kind}.npz", **{name: np.asarray(value) for name, value in found.items()})


class Lines(logging.Handler):
    """Warnings of the libraries' loggers."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


def loaded(folder: Path, name: str) -> tuple[transformers.PreTrainedTokenizerFast, torch.nn.Module]:
    """A tokenizer and a network of that class, by the Auto classes, in the network's own type and without a warning."""
    auto = "AutoModel" + name[name.index("For") :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert type(network).__name__ == name
    return tokenizer, network.eval()


def check(out: Path, lines: list[str]) -> None:
    heard = Lines()
    logging.getLogger("transformers").addHandler(heard)
    for kind in KINDS:
        folder, expected = out / kind / "back", np.load(out / f"{kind}.npz", allow_pickle=False)
        tokenizer, network = loaded(folder, f"{KINDS[kind]}ForMaskedLM")
        before = json.loads((out / kind / "float32" / "config.json").read_text())
        after = network.config.to_dict()
        for name in before.keys() - {"architectures", "transformers_version", "dtype"}:
            assert after[name] == before[name], (kind, name, before[name], after[name])
        ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
        assert [i for line in ids for i in line] == expected["line_ids"].tolist()
        for length in lengths(kind):
            ids, mask = (torch.tensor(expected[f"{name}_{length}"]) for name in ("ids", "mask"))
            with torch.no_grad():
                logits = network(input_ids=ids, attention_mask=mask.long()).logits.numpy()
            deviation = np.abs(logits - expected[f"logits_{length}"])[mask.numpy()].max()
            print(f"{kind} {length}: logits' largest deviation after export {deviation:.2e}")
            assert deviation < 1e-4
        length = lengths(kind)[0]
        ids, mask = (torch.tensor(expected[f"{name}_{length}"]) for name in ("ids", "mask"))
        for dtype in TYPES[1:]:
            small_folder = out / kind / f"back_{dtype}"
            _, rounded = loaded(small_folder, f"{KINDS[kind]}ForMaskedLM")
            assert rounded.dtype == getattr(torch, dtype)
            assert len(list(small_folder.glob("*.safetensors"))) > 3
            with torch.no_grad():
                logits = rounded.float()(input_ids=ids, attention_mask=mask.long()).logits.numpy()
            assert np.abs(logits - expected[f"logits_{dtype}_{length}"])[mask.numpy()].max() < 1e-4
        inputs = tokenizer("one two", return_tensors="pt")  # by its own names of inputs
        assert network(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
        ours = np.load(out / kind / "guesses.npz")
        guesses = pipeline("fill-mask", model=network, tokenizer=tokenizer, top_k=5)(str(ours["prompt"]))
        assert [guess["token"] for guess in guesses] == ours["top5"].tolist(), (kind, guesses, ours["top5"])
        print(f"{kind}: the card's code: {check_card(folder)[:80]}")
    assert not heard.found, heard.found


def tasks(out: Path) -> None:
    heard = Lines()
    logging.getLogger("transformers").addHandler(heard)
    for file in sorted(out.glob("*/*.npz")):
        expected, (kind, head) = np.load(file), file.with_suffix("").parts[-2:]
        _, network = loaded(file.with_suffix(""), KINDS[kind] + head)
        ids, mask = torch.tensor(expected["ids"]), torch.tensor(expected["mask"]).long()
        if head == "ForMultipleChoice":
            ids, mask = ids[None], mask[None]
        with torch.no_grad():
            found = network(input_ids=ids, attention_mask=mask)
        theirs = torch.stack([found.start_logits, found.end_logits], -1) if "start_logits" in found else found.logits
        deviation = np.abs(theirs.numpy().reshape(expected["logits"].shape) - expected["logits"])
        deviation = deviation[expected["mask"]].max() if deviation.ndim == 3 else deviation.max()
        print(f"{kind}{head}: logits' largest deviation {deviation:.1e} of {np.abs(expected['logits']).max():.1f}")
        assert deviation < 1e-4
    assert not heard.found, heard.found


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if sys.argv[1] == "tasks":
        tasks(folder)
    else:
        {"create": create, "check": check}[sys.argv[1]](folder, Path(sys.argv[3]).read_text().splitlines())
