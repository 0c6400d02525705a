"""The metrics of the tasks, as shares from 0 to 1 or correlations from -1 to 1.

Where one is not defined (a correlation with something constant, an F1 of a class that nobody names) it is 0.0, without
a warning. Predictions that are not numbers make a correlation nan.
"""

from collections.abc import Callable

import numpy as np
import scipy.stats
import sklearn.metrics

_Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of predictions that are right."""
    return float(sklearn.metrics.accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1; there are no classes but 0 and 1."""
    return float(sklearn.metrics.f1_score(labels, predictions, zero_division=0.0))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Unweighted mean of the F1 of each class; a class that is neither a label nor predicted does not count."""
    return float(sklearn.metrics.f1_score(labels, predictions, average="macro", zero_division=0.0))


def mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation coefficient."""
    return _unless_constant(sklearn.metrics.matthews_corrcoef, labels, predictions)


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation."""
    return _unless_constant(lambda x, y: scipy.stats.pearsonr(x, y).statistic, labels, predictions)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return _unless_constant(lambda x, y: scipy.stats.spearmanr(x, y).statistic, labels, predictions)


# (labels, predictions) -> value, where each example has one of both. Tasks with other metrics measure them themselves.
METRICS: dict[str, _Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "mcc": mcc,
    "pearson": pearson,
    "spearman": spearman,
}


def _unless_constant(metric: _Metric, labels: np.ndarray, predictions: np.ndarray) -> float:
    # In float64, as scipy warns of what is constant up to rounding in the type that it is given.
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if any(np.ptp(values) <= 1e-9 * np.abs(values).max() for values in (labels, predictions)):
        return 0.0
    return float(metric(labels, predictions))
