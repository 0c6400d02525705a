"""The metrics of tasks with one label for each example, as shares from 0 to 1 or correlations from -1 to 1.

Where one is not defined (a correlation with something constant, an F1 of a class that nobody names) it is 0.0, without
a warning. Predictions that are not numbers make a correlation nan. Other metrics stand with their tasks.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
import sklearn.metrics

_Metric = Callable[[np.ndarray, np.ndarray], float]


def _share(metric: Callable, **settings: Any) -> _Metric:
    return lambda labels, predictions: float(metric(labels, predictions, **settings))


def _correlation(metric: Callable) -> _Metric:
    def unless_constant(labels: np.ndarray, predictions: np.ndarray) -> float:
        # float64, for scipy warns of what is constant up to rounding in the type that it is given.
        labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
        if any(np.ptp(values) <= 1e-9 * np.abs(values).max() for values in (labels, predictions)):
            return 0.0
        return float(metric(labels, predictions))

    return unless_constant


METRICS: dict[str, _Metric] = {  # (labels, predictions) -> value
    "accuracy": _share(sklearn.metrics.accuracy_score),
    "f1": _share(sklearn.metrics.f1_score, zero_division=0.0),  # F1 of class 1; there are no classes but 0 and 1
    # Unweighted mean of the F1 of each class; a class that is neither a label nor predicted does not count.
    "macro_f1": _share(sklearn.metrics.f1_score, average="macro", zero_division=0.0),
    "mcc": _correlation(sklearn.metrics.matthews_corrcoef),  # Matthews correlation coefficient
    "pearson": _correlation(lambda x, y: scipy.stats.pearsonr(x, y).statistic),
    "spearman": _correlation(lambda x, y: scipy.stats.spearmanr(x, y).statistic),
}
