"""How two numbers per visual token go together: areas under ROC curves and correlations. NaN where undefined."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auroc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Probability that a positive token of (N,) has a higher score than a negative one; ties count half.

    NaN without positive or without negative tokens.
    """
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives:
        return float("nan")
    above = rankdata(scores)[is_positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of (N,) and (N,); NaN if one of them is constant."""
    return partial_pearson(first, second, np.empty((len(first), 0)))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of the ranks."""
    return pearson(rankdata(first), rankdata(second))


def partial_pearson(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
    """Correlation of what of both a linear function of `given` (N, k) does not explain."""
    explained = np.column_stack([np.ones(len(first)), given])
    remaining = [values - explained @ np.linalg.lstsq(explained, values)[0] for values in (first, second)]
    sizes = [np.linalg.norm(values) for values in remaining]
    # Below this, what remains is rounding.
    if any(size <= 1e-9 * np.linalg.norm(values) for size, values in zip(sizes, (first, second), strict=True)):
        return float("nan")
    return float(remaining[0] @ remaining[1] / (sizes[0] * sizes[1]))


def partial_spearman(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
    """[`partial_pearson`] of the ranks of all."""
    return partial_pearson(rankdata(first), rankdata(second), rankdata(given, axis=0))
