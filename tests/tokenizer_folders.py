"""Folders of `transformers` with a small tokenizer of each family, laid out as the hub has them, without the model."""

import base64
import io
import json
import random
from pathlib import Path

import sentencepiece as spm
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import tokenizers
from tokenizers import AddedToken, pre_tokenizers, processors

from sctd_jax.data import corpus

LINES = (
    "L'été à Noël, les garçons mangeaient du pâté ; n'est-ce pas ?",
    "Größe, Straße und Übermut kosten 3,14 € im Café.",
    "Привет, как дела? Всё хорошо!",
    "日本語のテキストです。中文也在這裡。",
    "한국어 문장입니다.",
    "ภาษาไทยไม่มีช่องว่าง",
    "مرحبا بالعالم، كيف حالك؟",
    "नमस्ते दुनिया, फ़िल्म देखो",
    "Ġanni mar il-Ħamrun.",
    "Well, I'LL see; they can't: 1,234.5 (maybe)...",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 done",
)
_ODD = ("  ", "\n", "\t", "\n\n", "\r\n", " ", "e\u0301", "\ufb01", "\u200b", "\u00a0", "１２３", "…", "▁", "Ġ", "    ")
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SPACES = [" " * count for count in (4, 3, 2)]  # added tokens of GPT-NeoX and ModernBERT


def training_texts() -> list[str]:
    """Real text, with some lines of other languages often enough to be learned."""
    speeches = corpus.find_sources([])[:3]
    return [Path(source.path).read_text() for source in speeches] + list(LINES[:-2]) * 20


def texts(count: int = 300) -> list[str]:
    """Real lines, and lines of words in several languages with white space and letters of every kind between."""
    speech = Path(corpus.find_sources([])[5].path).read_text().splitlines()
    rng = random.Random(0)
    words = [word for line in LINES for word in line.split()] + list(_ODD)
    made = ["".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randrange(12))) for _ in range(count)]
    return [*LINES, *speech[:count], *made, " two leading", "trailing  ", ""]


def _write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def byte_level(special: list[str]) -> tokenizers.ByteLevelBPETokenizer:
    """A byte-level BPE of 800 pieces, `special` the first."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(training_texts(), vocab_size=800, special_tokens=special, show_progress=False)
    return made


def roberta_json(made: tokenizers.ByteLevelBPETokenizer) -> dict:
    """RoBERTa's published `tokenizer.json`."""
    inner = made._tokenizer
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    inner.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    content = json.loads(inner.to_str())
    content["added_tokens"][-1]["lstrip"] = True
    return content


def modernbert_json() -> dict:
    """ModernBERT's published `tokenizer.json`: special pieces last, runs of spaces added."""
    made = byte_level(["|||IP|||", "<|padding|>"])._tokenizer
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    made.add_tokens([AddedToken(spaces, normalized=True) for spaces in SPACES])
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    made.add_special_tokens([AddedToken(name, lstrip=name == "[MASK]", normalized=False) for name in names])
    cls, sep = made.token_to_id("[CLS]"), made.token_to_id("[SEP]")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return json.loads(made.to_str())


def sentencepiece_model_file() -> bytes:
    """A unigram model as fairseq trains them: `<unk> <s> </s>` first, no other special piece."""
    model = io.BytesIO()
    lines = [line for text in training_texts() for line in text.splitlines() if len(line) < 4000]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=1000, character_coverage=0.998, minloglevel=2
    )
    return model.getvalue()


def write(root: Path) -> None:
    """Write a folder for each family and kind of files.

    `pieces.json` has what `transformers` reads of a SentencePiece model by two libraries that our environment of it
    has not.
    """
    made = byte_level(ROBERTA)
    made.save_model(str(_write(root / "roberta_files", config={"model_type": "roberta"})))
    _write(root / "roberta", config={"model_type": "roberta"}, tokenizer=roberta_json(made))
    options = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True, "mask_token": "<mask>"}
    _write(root / "roberta_space", tokenizer_config=options, tokenizer=roberta_json(made))
    options = {"tokenizer_class": "GPTNeoXTokenizerFast", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    _write(
        root / "modernbert", config={"model_type": "modernbert"}, tokenizer_config=options, tokenizer=modernbert_json()
    )
    model = sentencepiece_model_file()
    proto = sentencepiece_model.ModelProto.FromString(model)
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    pieces = {"vocab": [(piece.piece, piece.score) for piece in proto.pieces], "charsmap": charsmap}
    for kind in ("xlm-roberta", "camembert"):
        folder = _write(root / kind, config={"model_type": kind}, pieces=pieces)
        (folder / "sentencepiece.bpe.model").write_bytes(model)
