"""Intervals that contain the truth as often as they say, tests that reject as rarely as they should, seeded draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from transformers_litelvlm.evaluation.metrics import SentenceScore, summarize
from transformers_litelvlm.evaluation.statistics import (
    _interval,
    bootstrap_interval,
    ciou,
    compare,
    giou,
    images_needed,
    mean,
    permutation_test,
    precision,
    ratio_of_sums,
    retention,
)


def pixels(num_images: int, seed: int = 0, quality: float = 0.5, spread: float = 0.2):
    """Intersections, unions and images of sentences, four per image, of which those of an image are alike."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(num_images), 4)
    difficulty = rng.normal(0, spread, num_images)[images]
    unions = rng.integers(50, 5000, len(images))
    overlap = np.clip(quality + difficulty + rng.normal(0, 0.05, len(images)), 0, 1)
    return (unions * overlap).astype(int), unions, images


def test_values_are_those_of_the_summary():
    intersections, unions, images = pixels(20)
    unions[3] = intersections[3] = 0
    scores = [SentenceScore(i, u, i, u) for i, u in zip(intersections.tolist(), unions.tolist(), strict=True)]
    for rule, empty in (("lisa", 1.0), ("lavt", 0.0)):
        summary = summarize(scores, rule)
        assert ciou(intersections, unions, images).value == pytest.approx(summary["ciou"], abs=1e-12)
        assert giou(intersections, unions, images, empty).value == pytest.approx(summary["giou"], abs=1e-12)
        hits = precision(intersections, unions, images, 0.6, empty)
        assert hits.value == pytest.approx(summary["precision@0.6"], abs=1e-12)


def test_order_of_the_sentences_does_not_matter():
    numbers = np.stack(pixels(30))
    shuffled = numbers[:, np.random.default_rng(1).permutation(120)]
    first, second = (bootstrap_interval(ciou(*columns)) for columns in (numbers, shuffled))
    assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=1e-12)


def test_an_interval_is_what_drawing_whole_images_gives():
    intersections, unions, images = pixels(7)
    interval = bootstrap_interval(ciou(intersections, unions, images), resamples=500, seed=3)
    # The same draws, with the sentences of the drawn images laid out one by one.
    values = []
    for counts in np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=500):
        chosen = np.concatenate([np.flatnonzero(images == image) for image in np.repeat(np.arange(7), counts)])
        values.append(intersections[chosen].sum() / unions[chosen].sum())
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))), abs=1e-12)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("num_images, least, most", [(80, 270, 297), (8, 250, 282)])
def test_intervals_cover_the_truth_as_often_as_they_say(num_images, least, most):
    """Of 300. With few images less often, as docs/metrics.md says: 89 % with 8."""
    hits = 0
    for trial in range(300):
        # Clipping is symmetric, so the true mean is 0.5; sentences of an image are far from independent.
        rng = np.random.default_rng([trial, 1])  # not the stream that images are drawn from
        images = np.repeat(np.arange(num_images), 4)
        values = np.clip(0.5 + rng.normal(0, 0.2, num_images)[images] + rng.normal(0, 0.05, len(images)), 0, 1)
        interval = bootstrap_interval(mean(values, images), resamples=400, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    # 95 % of 300 is 285; the standard deviation is 3.8. Drawing sentences instead of images, they are about 200.
    assert least <= hits <= most


def test_the_permutation_test_agrees_with_all_permutations():
    first, second = (pixels(8, seed, quality) for seed, quality in ((0, 0.55), (1, 0.5)))
    one, other = ciou(*first), ciou(*second)
    observed = abs(one.value - other.value)
    larger = 0
    for swaps in itertools.product((0, 1), repeat=8):
        swapped = np.array(swaps, bool)
        above = [
            np.where(swapped, b, a).sum()
            for a, b in ((one.numerators, other.numerators), (other.numerators, one.numerators))
        ]
        below = [
            np.where(swapped, b, a).sum()
            for a, b in ((one.denominators, other.denominators), (other.denominators, one.denominators))
        ]
        larger += abs(above[0] / below[0] - above[1] / below[1]) >= observed - 1e-12
    exact = larger / 2**8
    assert permutation_test(one, other, permutations=20_000) == pytest.approx(exact, abs=0.012)
    assert 0.02 < exact < 0.98  # neither end: the agreement says something


def test_the_permutation_test_rejects_equal_methods_as_rarely_as_it_should():
    p_values = []
    for trial in range(300):
        rng = np.random.default_rng(trial)
        images = np.repeat(np.arange(25), 4)
        shared = rng.normal(0, 0.2, 25)[images]
        first, second = (mean(0.5 + shared + rng.normal(0, 0.1, 25)[images], images) for _ in range(2))
        p_values.append(permutation_test(first, second, permutations=300, seed=trial))
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09
    assert 0.4 < np.mean(p_values) < 0.6


def test_a_real_difference_is_found_and_pairing_is_what_finds_it():
    images = np.repeat(np.arange(60), 4)
    rng = np.random.default_rng(0)
    values = 0.5 + rng.normal(0, 0.2, 60)[images]
    first, second = mean(values + 0.02 + rng.normal(0, 0.02, 240), images), mean(values, images)
    result = compare(first, second)
    assert result.p_value < 0.001 and 0.01 < result.difference.low < 0.02 < result.difference.high < 0.03
    assert result.difference.value == pytest.approx(first.value - second.value)
    # Alone, either is known ten times less well than their difference.
    alone = bootstrap_interval(first)
    assert alone.high - alone.low > 10 * (result.difference.high - result.difference.low)
    reverse = compare(second, first)
    assert reverse.difference.value == -result.difference.value and reverse.p_value == result.p_value


def test_identical_methods_are_not_different():
    score = ciou(*pixels(20))
    result = compare(score, score)
    assert (result.p_value, result.difference.low, result.difference.high) == (1.0, 0.0, 0.0)


def test_retention():
    intersections, unions, images = pixels(40)
    full = giou(intersections, unions, images)
    half = mean(0.5 * intersections / unions, images)
    interval = retention(half, full)
    # Exactly half on every image: all draws agree.
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)
    assert str(interval) == "0.5000 (0.5000 to 0.5000)"


@pytest.mark.filterwarnings("error")
def test_an_end_is_infinite_where_draws_have_nothing_to_retain():
    ids, unions = [0, 1, 2, 3], [9] * 4
    full = giou([0, 0, 5, 5], unions, ids)
    interval = retention(giou([1, 0, 4, 4], unions, ids), full)
    # 6 % of the draws are of images 0 and 1 alone, where the full model scores 0: nearly all are infinite.
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.9, 0.8, np.inf), abs=1e-12)
    assert str(interval) == "0.9000 (0.8000 to inf)"
    # Where nothing was above the line either, a draw says nothing.
    same = retention(full, full)
    assert (same.low, same.high) == (1, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("drawn", "confidence", "ends"),
    [
        ([3, 0, 2, 1, np.inf], 0.5, (1, 3)),  # the last finite draw
        ([3, 0, 2, 1, np.inf], 0.6, (0.8, np.inf)),  # a fifth of the way from it to infinity
        ([3, 0, 2, 1, np.inf], 0.9, (0.2, np.inf)),
        ([np.inf, 0, np.inf], 0.2, (np.inf, np.inf)),  # at 0.8 and 1.2
        ([-np.inf, 0, 1, np.inf], 0.9, (-np.inf, np.inf)),
        ([np.nan, 4, 0, np.nan, 2], 0.5, (1, 3)),
    ],
)
def test_ends_between_draws(drawn, confidence, ends):
    found = interval_of(drawn, confidence)
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_draws_that_all_say_nothing():
    with pytest.raises(ValueError, match="`resamples` of 2 have no images with anything to divide by: draw more"):
        interval_of([np.nan, np.nan], 0.95)


def interval_of(drawn, confidence):
    score = mean([0.0, 1.0], [0, 1])
    return _interval([score], lambda value: np.array(drawn) if np.ndim(value) else value, len(drawn), confidence, 0)


def test_seeds_are_averaged_by_sentence():
    runs = [pixels(15, seed) for seed in range(3)]
    intersections, unions = (np.stack([run[place] for run in runs]) for place in (0, 1))
    images = runs[0][2]
    together = giou(intersections, unions, images)
    each = [giou(*run).value for run in runs]
    assert together.value == pytest.approx(np.mean(each), abs=1e-12)
    assert together.value_of_seeds == pytest.approx(each, abs=1e-12)
    assert together.seed_deviation == pytest.approx(np.std(each, ddof=1))
    # Three equal runs know no more than one.
    copies = giou(np.stack([runs[0][0]] * 3), np.stack([runs[0][1]] * 3), images)
    one, three = bootstrap_interval(giou(*runs[0])), bootstrap_interval(copies)
    assert (one.low, one.high) == pytest.approx((three.low, three.high), abs=1e-12)
    assert np.isnan(giou(*runs[0]).seed_deviation)
    pooled = ciou(intersections, unions, images)
    assert pooled.value == pytest.approx(intersections.sum() / unions.sum(), abs=1e-12)


def test_many_images_are_drawn_in_pieces_with_the_same_result(monkeypatch):
    from transformers_litelvlm.evaluation import statistics

    first, second = giou(*pixels(50)), giou(*pixels(50, 1))
    whole = compare(first, second, resamples=300, permutations=300)
    monkeypatch.setattr(statistics, "_CHUNK", 50 * 7)
    pieces = compare(first, second, resamples=300, permutations=300)
    assert pieces.p_value == whole.p_value
    assert vars(pieces.difference) == pytest.approx(vars(whole.difference), abs=1e-12)


def test_draws_are_seeded_and_leave_the_global_state_alone():
    score, other = ciou(*pixels(30)), ciou(*pixels(30, 1))
    before = np.random.get_state()[1].copy()
    first, again, differently = (compare(score, other, seed=seed, permutations=500) for seed in (0, 0, 1))
    assert first == again and first != differently
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_images_named_by_text():
    intersections, unions, images = pixels(12)
    named = np.array([f"COCO_{image:012d}" for image in images])
    assert bootstrap_interval(ciou(intersections, unions, named)) == bootstrap_interval(
        ciou(intersections, unions, images)
    )


def test_a_seed_with_nothing_to_divide_by():
    """Nothing is meant, and one of two seeds predicts nothing: an evaluation ended in an error after all its work."""
    score = ciou([[0, 0], [0, 7]], [[0, 0], [0, 14]], ["a", "b"])
    assert score.value == 0.5 and np.isnan(score.value_of_seeds[0]) and score.value_of_seeds[1] == 0.5


def test_bad_input():
    intersections, unions, images = pixels(5)
    score = ciou(intersections, unions, images)
    with pytest.raises(ValueError, match="5 and 4 of them, 4 in common"):
        compare(score, ciou(intersections[:16], unions[:16], images[:16]))
    with pytest.raises(ValueError, match=r"got \(20,\), \(20,\) and \(19,\)"):
        ciou(intersections, unions, images[:-1])
    with pytest.raises(ValueError, match="positive sum"):
        ciou(intersections * 0, unions * 0, images)
    with pytest.raises(ValueError, match="finite"):
        mean([1.0, float("nan")], [0, 1])
    with pytest.raises(ValueError, match="score of 0"):
        retention(score, ratio_of_sums(intersections * 0, unions, images))
    with pytest.raises(ValueError, match="`resamples` must be at least 1, got 0"):
        bootstrap_interval(score, resamples=0)
    with pytest.raises(ValueError, match="`confidence` must be between 0 and 1, got 95"):
        bootstrap_interval(score, confidence=95)


def test_images_needed_follow_from_the_paired_variance():
    """Images that are hard for both methods do not count; half the difference needs four times the images."""
    rng = np.random.default_rng(0)
    difficulty, own = rng.normal(0, 1, 4000), rng.normal(0, 0.2, 4000)
    first, second = mean(difficulty + own, np.arange(4000)), mean(difficulty, np.arange(4000))
    needed = images_needed(first, second, 0.05, 0.05)
    assert needed == pytest.approx(((1.96 + 0.8416) * 0.2 / 0.05) ** 2, rel=0.05)
    assert images_needed(first, second, 0.025, 0.05) == pytest.approx(4 * needed, abs=4)
    # Of a ratio of sums with equal denominators it is the same, whatever these are.
    ratios = [ratio_of_sums(3 * score.numerators, np.full(4000, 3.0), score.images) for score in (first, second)]
    assert images_needed(*ratios, 0.05, 0.05) == needed
    # However alike the images are: five coins are alike in one of sixteen cases.
    assert images_needed(first, first, 0.05, 0.05) == 6
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match=f"`difference` must be between 0 and 1, got {wrong}"):
            images_needed(first, second, wrong, 0.05)
