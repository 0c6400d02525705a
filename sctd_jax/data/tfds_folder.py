"""Opening a folder that TFDS has written: only with features that are ours to read, and with nothing else of it run."""

import json
import os
from collections.abc import Iterator
from typing import Any

from sctd_jax.errors import UserError, printable
from sctd_jax.storage import regular_file

# TFDS imports the Python class that `features.json` names, whatever its module does.
_FEATURES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "class_label_feature.ClassLabel",
        "features_dict.FeaturesDict",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
    )
}
_CONTENTS = ("class_label", "features_dict", "sequence", "tensor", "text")  # no json_feature: it may nest classes


def open_folder(folder: str | os.PathLike) -> Any:
    """TFDS's read-only builder of a folder with `features.json`, `dataset_info.json` and the shards."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format
    from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2

    def parse(name: str, message: Any) -> Any:
        path = os.path.join(folder, name)
        try:
            with open(regular_file(path), encoding="utf-8") as file:
                return json_format.ParseDict(json.load(file), message)
        except (OSError, ValueError, RecursionError, TypeError, json_format.Error) as error:
            raise UserError(f"{path} cannot be read: {printable(error)}; prepare the dataset again") from error

    for place, feature in _nested("", parse("features.json", feature_pb2.Feature())):
        if feature.python_class_name not in _FEATURES or feature.WhichOneof("content") not in _CONTENTS:
            known = ", ".join(sorted(name.rpartition(".")[2] for name in _FEATURES))
            raise UserError(
                f"{folder}/features.json: the feature {printable(place) or 'at the top'} is of the class "
                f"{printable(feature.python_class_name)}, which is not loaded; only {known} of TFDS are"
            )
    info = parse("dataset_info.json", dataset_info_pb2.DatasetInfo())
    for name in (info.name, *(name for split in info.splits for name in (split.name, split.filepath_template))):
        if "/" in name:  # would be joined to the folder
            raise UserError(f"{folder}: dataset_info.json names shards outside of the folder ({printable(name)})")
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # many kinds, and tensorflow is missed where a type is none of NumPy's
        said = printable(str(error).strip().partition("\n")[0] or repr(error))
        raise UserError(f"{folder}: no dataset that TFDS reads: {said:.300}; prepare it again") from error


def _nested(place: str, feature: Any) -> Iterator[tuple[str, Any]]:
    """A feature and all inside of it, each with where it stands."""
    yield place, feature
    for name, inner in feature.features_dict.features.items():
        yield from _nested(f"{place}/{name}" if place else name, inner)
    if feature.sequence.HasField("feature"):
        yield from _nested(place, feature.sequence.feature)
