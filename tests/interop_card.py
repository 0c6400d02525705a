"""Print an export's model card as the hub reads it, in the isolated environment of tests/requirements-interop.txt."""

import contextlib
import io
import json
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load


def check_card(folder: str | Path, text: str = "", other: str = "") -> str:
    """What the card's code, with `other` for its `text`, prints where the folder is the working directory."""
    path = Path(folder, "README.md")
    card = ModelCard.load(path)
    data = card.data
    known = {
        "language", "license", "library_name", "pipeline_tag", "tags", "base_model", "datasets", "metrics",
        "model-index",
    }  # fmt: skip
    written = metadata_load(path)
    assert written.keys() <= known, written
    # The library's own classes write what they have read of it.
    assert {name: value for name, value in data.to_dict().items() if value is not None} == written
    kind = json.loads(Path(folder, "config.json").read_text())["model_type"]
    assert data.license and data.library_name == "transformers" and kind in data.tags
    for result in data.eval_results or []:
        assert result.task_type == data.pipeline_tag and isinstance(result.metric_value, float)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert text in code
    code = code.replace(text, other) if text else code
    before, out = os.getcwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out):
            exec(code, {})
    finally:
        os.chdir(before)
    assert out.getvalue().strip()
    return out.getvalue().strip()
