"""Word frequencies alone: a model that knows how often each piece comes, and nothing of a masked token's neighbours.

A run whose loss does not fall below that of this model has learned no context. Shapes: V vocabulary.
"""

from pathlib import Path

import numpy as np

from sctd_jax.data.rows import FREQUENCIES_FILE, Rows
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError, printable
from sctd_jax.storage import regular_file

# Rows that are counted at most, spread evenly, so that a run on any text starts in seconds; more where a vocabulary is
# so large that these are not 128 tokens for each piece, with which the estimate costs about 0.004 nats.
_ROWS, _TOKENS_OF_A_PIECE, _AT_ONCE = 1 << 16, 128, 1 << 12


def counts(rows: Rows, vocab_size: int, special: SpecialIds) -> np.ndarray:
    """Number f64[V] of each piece among the tokens that can be predicted, in all rows or in enough of them."""
    length = rows.read([0]).shape[1]
    most = min(len(rows), max(_ROWS, _TOKENS_OF_A_PIECE * vocab_size // length))
    numbers, counts_V = np.arange(most) * len(rows) // most, np.zeros(vocab_size)
    for start in range(0, most, _AT_ONCE):
        tokens_BN = rows.read(numbers[start : start + _AT_ONCE])
        if not 0 <= tokens_BN.min() <= tokens_BN.max() < vocab_size:
            raise UserError(f"the rows in {rows.folder} are damaged: ids that a vocabulary of {vocab_size:,} has not; "
                            "prepare them again")  # fmt: skip
        counts_V += np.bincount(tokens_BN.ravel(), minlength=vocab_size)
    counts_V[list(special.unmaskable)] = 0.0
    return counts_V


def _kept(path: Path, vocab_size: int) -> np.ndarray | None:
    """Number f64[V] of each piece in all training rows, as preparation has counted them; None if it did not."""
    if not path.exists():
        return None
    try:
        counts_V = np.load(regular_file(path, "; prepare the rows again"), allow_pickle=False)
        if counts_V.shape != (vocab_size,) or counts_V.dtype.kind not in "iuf" or not (counts_V >= 0).all():
            raise ValueError(f"{vocab_size:,} counts are expected, found {counts_V.dtype} of shape {counts_V.shape}")
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(f"{path} is damaged: {printable(error)}; prepare the rows again") from error
    return counts_V.astype(np.float64)


def log_frequencies(train: Rows, vocab_size: int, special: SpecialIds) -> np.ndarray:
    """Logarithm f64[V] of the chance of each piece, by the training rows; 0 for pieces that are never predicted.

    One is added to each count (Laplace's rule), so that a piece that training never shows has a finite loss.
    """
    counts_V = _kept(Path(train.folder, FREQUENCIES_FILE), vocab_size)
    return log_of(counts(train, vocab_size, special) if counts_V is None else counts_V, special)


def log_of(counts_V: np.ndarray, special: SpecialIds) -> np.ndarray:
    """`log_frequencies` of counts [V]; those of pieces that are never predicted do not matter."""
    counts_V = counts_V + 1.0
    logs_V = np.log(counts_V / np.delete(counts_V, special.unmaskable).sum())
    logs_V[list(special.unmaskable)] = 0.0
    return logs_V


def cross_entropy(heldout: Rows, logs_V: np.ndarray, special: SpecialIds) -> float:
    """Mean loss in nats of `log_frequencies` over the held-out tokens that can be predicted."""
    return loss_of(counts(heldout, len(logs_V), special), logs_V, special)


def loss_of(counts_V: np.ndarray, logs_V: np.ndarray, special: SpecialIds) -> float:
    """`cross_entropy` of tokens with these counts [V]; those of pieces that are never predicted do not matter."""
    predicted = np.delete(counts_V, special.unmaskable).sum()
    return float(-(counts_V @ logs_V) / max(predicted, 1.0))
