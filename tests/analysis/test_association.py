"""Areas under curves and correlations: planted truth is found, as scipy and plain counting have it."""

import numpy as np
import pytest
from scipy import stats

from transformers_litelvlm.analysis.association import auroc, partial_pearson, partial_spearman, pearson, spearman


def test_auroc_counts_pairs_and_halves_ties():
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 6, 50).astype(float), generator.random(50) < 0.4
    pairs = scores[positive][:, None] - scores[~positive]
    assert auroc(scores, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auroc(np.ones(9), np.arange(9) < 3) == 0.5
    assert np.isnan(auroc(scores, np.zeros(50, bool))) and np.isnan(auroc(scores, np.ones(50, bool)))


def test_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 200))
    second = second + 0.7 * first**3
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(pearson(first, np.full(200, 3.7))) and np.isnan(spearman(first, np.zeros(200)))


def test_partial_correlation_takes_a_common_cause_away():
    generator = np.random.default_rng(0)
    cause, first, second = generator.normal(size=(3, 20_000))
    first, second = first + 2 * cause, second + 2 * cause
    given = cause[:, None]
    assert pearson(first, second) > 0.7
    assert abs(partial_pearson(first, second, given)) < 0.03
    # By the formula for one given variable.
    r, a, b = pearson(first, second), pearson(first, cause), pearson(second, cause)
    expected = (r - a * b) / np.sqrt((1 - a**2) * (1 - b**2))
    assert partial_pearson(first, second, given) == pytest.approx(expected, abs=1e-9)
    assert abs(partial_spearman(first, second, given)) < 0.1
    assert np.isnan(partial_pearson(cause, second, given))
