"""Run in the isolated environment of tests/requirements-interop.txt: ids by `AutoTokenizer` of each folder.

python tests/interop_tokenizers.py ROOT TEXTS.json

Writes ROOT.json: by the folders' names the ids of each text as a row, as a pair with the text before it, and the
length. A folder with pieces.json gets the tokenizer.json that `transformers` makes of its SentencePiece model.
"""

import base64
import itertools
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, CamembertTokenizer, XLMRobertaTokenizer
from transformers.convert_slow_tokenizer import CamembertConverter, XLMRobertaConverter

_CLASSES = {
    "xlm-roberta": (XLMRobertaConverter, XLMRobertaTokenizer),
    "camembert": (CamembertConverter, CamembertTokenizer),
}


def main(root: Path, texts: list[str]) -> None:
    found = {}
    for folder in sorted(root.iterdir()):
        if (folder / "pieces.json").exists():
            pieces = json.loads((folder / "pieces.json").read_text())
            converter, kind = _CLASSES[folder.name]
            ordered = converter.convert_from_spm(vocab=[tuple(piece) for piece in pieces["vocab"]])
            charsmap = base64.b64decode(pieces["charsmap"])
            tokenizer = kind(**ordered, _spm_precompiled_charsmap=charsmap, additional_special_tokens=["<s>", "</s>"])
            tokenizer.save_pretrained(root.with_name("converted") / folder.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        pairs = [tokenizer(a, b) for a, b in itertools.pairwise(texts)]
        found[folder.name] = {
            "ids": tokenizer(texts)["input_ids"],
            "pairs": [pair["input_ids"] for pair in pairs],
            "types": max(max(pair.get("token_type_ids", [0])) for pair in pairs),
            "length": len(tokenizer),
        }
    root.with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
