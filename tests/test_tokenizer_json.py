"""SentencePiece models as `tokenizer.json`: the same ids for the same text, or a refusal."""

import io
import random
import unicodedata

import pytest
import sentencepiece as spm
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import tokenizers

from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.hf import tokenizer_json

WORDS = ["the", "court", "found", "evidence", "of", "a", "contract", "owner", "land", "near", "New", "York", "page"]
SYMBOLS = ["<num>", "§§", "New York", "[A.B]", "(c|d)*", "a#b", "\u2581start", "<n"]
# What may stand around a symbol, and what looks like a piece that no text is read as.
ODD = [
    *SYMBOLS[:6],
    " start",
    "<",
    ">",
    "[X]",
    "<s>",
    "[",
    "]",
    "  ",
    "\t",
    "ﬁ",
    "e\u0301",
    "日本",
    "ф",
    "<0x41>",
    "x\u2581",
]


@pytest.fixture
def train(tmp_path):
    """Train a SentencePiece model and return its file."""

    def make(kind, **options):
        rng, model = random.Random(0), io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=options.pop("sentence_iterator", None) or iter(
                [" ".join(rng.choices(WORDS + SYMBOLS + list("<>[X]041"), k=20)) for _ in range(200)]
            ),
            model_writer=model, model_type=kind, hard_vocab_limit=False, minloglevel=2,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece="[PAD]", unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]",
            **{"vocab_size": 500 if options.get("byte_fallback") else 200}
            | {"control_symbols": ["[MASK]", "[X]", "<s>"]} | options,
        )  # fmt: skip
        path = tmp_path / "x.model"
        path.write_bytes(model.getvalue())
        return path

    return make


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_defined_symbols": SYMBOLS},
        {"user_defined_symbols": SYMBOLS, "split_by_whitespace": False},
        {"user_defined_symbols": SYMBOLS, "byte_fallback": True},
        {"user_defined_symbols": ["ﬁ"], "normalization_rule_name": "identity"},
        {"user_defined_symbols": ["<mask>"], "control_symbols": ["[X]"], "split_by_whitespace": False},
    ],
)
def test_an_export_reads_text_as_the_model_does(train, kind, options):
    path = train(kind, **options)
    loaded, rng = tokenizer.load(path), random.Random(1)
    converted = tokenizer_json.convert(path.read_bytes(), loaded.special)
    lines = [
        "".join(rng.choice(ODD + WORDS) + rng.choice(["", " "]) for _ in range(rng.randrange(1, 25)))
        for _ in range(200)
    ]
    theirs = [encoding.ids for encoding in converted.encode_batch(lines, add_special_tokens=False)]
    for line, ids, expected in zip(lines, loaded.encode(lines), theirs, strict=True):
        assert ids.tolist() == expected, line
    assert "one of its 1 other control_symbols, such as '[X]', is split" in tokenizer.remarks(path)[0]


def test_decomposed_letters_are_read_as_the_model_reads_them(train):
    """Files from macOS have them; Hebrew and Arabic points are typed in an order that no normal form has."""
    words = "서울 한국어 Việt tiếng ượng ガ ｶﾞ தமிழொ בְּרֵאשִׁית שַׁבָּת مُحَمَّد أَنَّ السَّمَاءِ น้ำ फ़िल्म ὕδωρ ṣ́ ǟ é ﬁ ½ Ａ"
    forms = [unicodedata.normalize(form, words) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    out_of_order = ["ש\u05c1\u05bc\u05b8", "م\u0651\u064e", "e\u0302\u0323", "a\u0308\u0328"]
    lines = [*words.split(), *out_of_order, *(word for form in forms for word in form.split())]
    path = train("char", sentence_iterator=iter([" ".join(lines)]))
    loaded = tokenizer.load(path)
    converted = tokenizer_json.convert(path.read_bytes(), loaded.special)
    converted = tokenizers.Tokenizer.from_str(converted.to_str())
    for line, ids in zip(lines, loaded.encode(lines), strict=True):
        assert ids.tolist() == converted.encode(line, add_special_tokens=False).ids, ascii(line)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"add_dummy_prefix": False}, "add_dummy_prefix=false"),
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces=false"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix=true"),
        ({"kind": "word"}, "model_type=word"),
    ],
)
def test_models_that_transformers_could_not_read_alike_are_refused(train, option, said):
    with pytest.raises(UserError, match=f"trained with {said}: exported"):
        tokenizer.load(train(**({"kind": "unigram"} | option)))


def test_models_that_were_edited_so_are_refused(train):
    proto = sentencepiece_model.ModelProto.FromString(train("bpe").read_bytes())
    proto.pieces[-1].type = proto.pieces[-1].UNUSED
    proto.normalizer_spec.escape_whitespaces = False
    with pytest.raises(UserError, match="trained with escape_whitespaces=false, pieces marked as unused: exported"):
        tokenizer.check_exportable(proto.SerializeToString(), "x.model")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("options", [{"user_defined_symbols": ["ﬁ"]}, {"normalization_rule_name": "nmt_nfkc_cf"}])
def test_symbols_that_the_normaliser_changes_are_refused_but_not_in_a_run_that_has_them(train, kind, options):
    path = train(kind, **{"user_defined_symbols": ["New York", "<mask>"], **options})
    with pytest.raises(
        UserError, match=r"trained with user_defined_symbols that its normaliser changes \((ﬁ|New York)\)"
    ):
        tokenizer.load(path)
    assert tokenizer.load(path, kept=True).encode(["page"])[0].size


def test_of_a_model_and_a_json_that_has_more_the_json_is_imported(train, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train("bpe").read_bytes())
    model = tmp_path / "tokenizer.model"
    converted = tokenizer_json.convert(model.read_bytes(), tokenizer.load(model).special)
    converted.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.find_published(tmp_path, "") == model
    converted.add_tokens(["covid19"])
    converted.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.find_published(tmp_path, "") == tmp_path / "tokenizer.json"


def test_what_lies_beside_a_model_is_heeded(train):
    path = train("unigram")
    beside = path.with_name("tokenizer_config.json")
    beside.write_text('{"tokenizer_class": "AlbertTokenizerFast"}')
    with pytest.raises(
        UserError, match=r"tokenizer_class is 'AlbertTokenizerFast', supported are .*, PreTrainedTokenizerFast: "
    ):
        tokenizer.load(path)
    beside.write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["[E1]"]}')
    with pytest.raises(UserError, match=r"adds 1 tokens that x.model has not, such as '\[E1\]'"):
        tokenizer.load(path)
    beside.write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]"}')
    assert tokenizer.load(path).special.mask == 4
