"""How sure a score is: intervals, tests between methods, retention, for scores that are ratios of sums.

gIoU is the sum of the IoUs over the number of sentences, cIoU the sum of the intersections over that of the unions,
precision the number of hits over that of sentences, J&F likewise over expressions. Sentences about one image are not
independent, so whole images are drawn, not sentences. Everything is seeded; no global random state is read or changed.

Not `scipy.stats.bootstrap` and `permutation_test`: they draw or swap single numbers, where an image is a pair of sums,
and other images for the same seed, so that published intervals would change. They would be slower, too: here a draw is
a vector of weights, and all draws together a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from transformers_litelvlm.evaluation.metrics import sentence_ious


RESAMPLES = 2000
PERMUTATIONS = 10_000
# Draws that are held in memory at a time, as numbers of images times resamples.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A value that was measured, and the ends of the interval it lies in, with a `confidence`."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same sentences."""

    difference: Interval  # first minus second
    p_value: float  # two-sided, of the permutation test


@dataclass(frozen=True, eq=False)
class RatioOfSums:
    """A score by image: what is summed above and below the line.

    Make one with [`giou`], [`ciou`], [`precision`] or [`mean`]. Scores are compared when their images are the same.

    Args:
        numerators: `(images,)` float64.
        denominators: `(images,)` float64.
        images: `(images,)` their ids, sorted.
        value_of_seeds: the score of each seed, NaN if it has nothing to divide by; `value` is of all together.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    images: np.ndarray
    value_of_seeds: tuple[float, ...]

    @property
    def value(self) -> float:
        return float(self.numerators.sum() / self.denominators.sum())

    @property
    def shares(self) -> np.ndarray:
        """What each image adds to the score beyond the score, `(images,)`: their mean is 0, and their standard
        deviation over the root of the number of images is the standard error of the score (delta method)."""
        return (self.numerators - self.value * self.denominators) / self.denominators.mean()

    @property
    def seed_deviation(self) -> float:
        """Standard deviation over the seeds (n - 1); NaN with a single one."""
        return float(np.std(self.value_of_seeds, ddof=1)) if len(self.value_of_seeds) > 1 else float("nan")


def ratio_of_sums(numerators: Any, denominators: Any, image_ids: Any) -> RatioOfSums:
    """Any score that is a ratio of sums over sentences.

    Args:
        numerators: `(sentences,)`, or `(seeds, sentences)` if anything was random. Seeds are averaged per sentence
            before anything else: intervals are over images, for the seeds that were run.
        denominators: of the same shape.
        image_ids: `(sentences,)`, the image (or video) of each sentence.

    Raises:
        ValueError: shapes do not fit, a number is not finite, or there is nothing to divide by.
    """
    above, below = (np.atleast_2d(np.asarray(values, np.float64)) for values in (numerators, denominators))
    images, place = np.unique(np.asarray(image_ids), return_inverse=True)
    if above.ndim != 2 or above.shape != below.shape or above.shape[1:] != place.shape:
        raise ValueError(
            "`numerators` and `denominators` must have shape (sentences,) or (seeds, sentences) with as many sentences"
            f" as `image_ids`, got {np.shape(numerators)}, {np.shape(denominators)} and {place.shape}."
        )
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise ValueError("`numerators` and `denominators` must be finite.")
    if not below.sum() > 0:
        raise ValueError("`denominators` must have a positive sum.")
    numerator, denominator = (np.bincount(place, values.mean(0), len(images)) for values in (above, below))
    with np.errstate(invalid="ignore", divide="ignore"):  # of a seed with nothing to divide by, NaN
        of_seeds = above.sum(1) / below.sum(1)
    return RatioOfSums(numerator, denominator, images, tuple(of_seeds.tolist()))


def mean(values: Any, image_ids: Any) -> RatioOfSums:
    """Mean over sentences of any value, `(sentences,)` or `(seeds, sentences)`: J&F, seconds, ..."""
    return ratio_of_sums(values, np.ones_like(values, np.float64), image_ids)


def giou(intersections: Any, unions: Any, image_ids: Any, empty_iou: float = 1.0) -> RatioOfSums:
    """gIoU from pixels, `(sentences,)` or `(seeds, sentences)`; `empty_iou` as in `metrics.summarize`."""
    return mean(sentence_ious(intersections, unions, empty_iou), image_ids)


def ciou(intersections: Any, unions: Any, image_ids: Any) -> RatioOfSums:
    """cIoU from pixels, `(sentences,)` or `(seeds, sentences)`: sums run over the seeds too."""
    return ratio_of_sums(intersections, unions, image_ids)


def precision(
    intersections: Any, unions: Any, image_ids: Any, threshold: float = 0.5, empty_iou: float = 1.0
) -> RatioOfSums:
    """Share of the sentences with at least `threshold` IoU, from pixels as in [`giou`]."""
    return mean(sentence_ious(intersections, unions, empty_iou) >= threshold, image_ids)


def bootstrap_interval(
    score: RatioOfSums, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a score, over images.

    Args:
        score: the score.
        resamples: how often images are drawn, as many as there are, with repetition.
        confidence: share of the resampled values that lie inside.
        seed: of the draws. The same seed draws the same images for every score on them.
    """
    return _interval([score], lambda value: value, resamples, confidence, seed)


def retention(
    score: RatioOfSums, full: RatioOfSums, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Share of the full model's score that is left, with an interval in which both are resampled together.

    Args:
        score: the pruned model's.
        full: the unpruned model's, on the same images. Draws in which it is 0 and `score` is not are infinite.
        resamples, confidence, seed: as in [`bootstrap_interval`].

    Raises:
        ValueError: the images differ, or the full model's score is 0.
    """
    _require_same_images(score, full)
    if full.value == 0:
        raise ValueError("`full` has a score of 0: nothing can be retained of it.")
    return _interval([score, full], lambda value, reference: value / reference, resamples, confidence, seed)


def compare(
    first: RatioOfSums,
    second: RatioOfSums,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Difference of two methods on the same images: paired bootstrap interval and permutation test.

    Args:
        first, second: scores of two methods on the same images.
        resamples, confidence, seed: as in [`bootstrap_interval`].
        permutations: as in [`permutation_test`].
    """
    _require_same_images(first, second)
    difference = _interval([first, second], np.subtract, resamples, confidence, seed)
    return Comparison(difference, permutation_test(first, second, permutations, seed))


def permutation_test(
    first: RatioOfSums, second: RatioOfSums, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p-value of "both methods are alike".

    How often does a difference as large arise if, image by image, a coin decides which result is whose?

    Args:
        first, second: scores of two methods on the same images.
        permutations: times that all coins are thrown. The smallest possible p-value is `1 / (permutations + 1)`, as
            what was observed is one of the ways the coins could have fallen.
        seed: of the coins.

    Returns:
        Between 0 (exclusive) and 1.

    Raises:
        ValueError: the images differ.
    """
    _require_same_images(first, second)
    _check_count("permutations", permutations)
    rng = np.random.default_rng(seed)
    observed = abs(first.value - second.value)
    sums = np.stack([first.numerators, first.denominators, second.numerators, second.denominators])  # (4, images)
    totals, extreme = sums.sum(1), 1
    for count in _chunks(permutations, len(first.images)):
        swapped = (rng.random((count, len(first.images))) < 0.5).astype(np.float64)
        moved = swapped @ (sums[[2, 3, 0, 1]] - sums).T  # (count, 4)
        above, below, other_above, other_below = (totals + moved).T
        with np.errstate(invalid="ignore", divide="ignore"):
            differences = np.abs(above / below - other_above / other_below)
        # Sums in another order differ in their last digits: what is equal must count as equal.
        extreme += int(np.count_nonzero(~(differences < observed - 1e-12)))
    return extreme / (permutations + 1)


def images_needed(
    first: RatioOfSums, second: RatioOfSums, difference: float, significance: float, power: float = 0.8
) -> int:
    """How many images would show a difference, if they vary as those that were seen.

    By the normal approximation of the paired difference: of every image, what it adds to one score beyond what it adds
    to the other.

    Args:
        first, second: scores of two methods on the same images.
        difference: that is to be shown, in the unit of the score, above 0 and at most 1.
        significance: the two-sided p-value that counts.
        power: how often the images would show it.

    Raises:
        ValueError: the images differ, or a number is out of range.
    """
    _require_same_images(first, second)
    for name, value, is_possible in (
        ("difference", difference, 0 < difference <= 1),  # 1: all right against all wrong
        ("significance", significance, 0 < significance < 1),
        ("power", power, 0 < power < 1),
    ):
        if not is_possible:
            raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")
    difference_by_image = first.shares - second.shares
    deviation = float(np.std(difference_by_image, ddof=1)) if len(first.images) > 1 else float("nan")
    quantile = NormalDist().inv_cdf
    by_variance = ((quantile(1 - significance / 2) + quantile(power)) * deviation / difference) ** 2
    # Fewer coins than this cannot fall in a way that is rare enough.
    by_coins = 1 - math.log2(significance)
    return math.ceil(max(by_coins, 0.0 if math.isnan(by_variance) else by_variance))


def draw_again(scores: Sequence[RatioOfSums], draws: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Values of scores on the same images, when as many images are drawn, with repetition: `(scores, draws)`."""
    size, values = len(scores[0].images), []
    rng = np.random.default_rng(seed)
    for count in _chunks(draws, size):
        weights = rng.multinomial(size, np.full(size, 1 / size), size=count)
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append([(weights @ item.numerators) / (weights @ item.denominators) for item in scores])
    return np.concatenate(values, axis=1)


def _interval(
    scores: list[RatioOfSums], combine: Callable[..., Any], resamples: int, confidence: float, seed: int
) -> Interval:
    _check_count("resamples", resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    tail = (1 - confidence) / 2 * 100
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = combine(*draw_again(scores, resamples, seed))
        # 0 / 0 says nothing (all targets and predictions empty). x / 0 is infinite.
        drawn = np.sort(drawn[~np.isnan(drawn)])
        if not drawn.size:
            raise ValueError(f"`resamples` of {resamples} have no images with anything to divide by: draw more.")
        ends = np.percentile(drawn, (tail, 100 - tail))
    # NaN where it would have to interpolate between infinities, or up to one.
    places = np.array((tail, 100 - tail)) / 100 * (len(drawn) - 1)
    low, high = np.where(np.isnan(ends), np.interp(places, np.arange(len(drawn)), drawn), ends)
    return Interval(float(combine(*(item.value for item in scores))), float(low), float(high), confidence)


def _chunks(total: int, size: int) -> Iterator[int]:
    step = max(1, _CHUNK // size)
    yield from (min(step, total - start) for start in range(0, total, step))


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _require_same_images(first: RatioOfSums, second: RatioOfSums) -> None:
    if not np.array_equal(first.images, second.images):
        raise ValueError(
            f"The scores are not on the same images: {len(first.images)} and {len(second.images)} of them,"
            f" {len(np.intersect1d(first.images, second.images))} in common."
        )
