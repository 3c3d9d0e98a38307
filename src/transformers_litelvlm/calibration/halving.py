"""Successive halving: the more images a candidate was measured on, the fewer candidates are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.statistics import Comparison, RatioOfSums


@dataclass(frozen=True)
class Rules:
    """When two settings differ: the paired interval leaves out 0, and the permutation test agrees.

    Args:
        significance: two-sided, of one comparison.
        draws: resamples of the interval, and permutations of the test.
    """

    significance: float
    draws: int

    @classmethod
    def of(cls, confidence: float, num_candidates: int, num_rounds: int) -> Rules:
        """Rules by which, with `confidence`, no candidate is left out that is in truth the best of its budget: it may
        be compared with every other one in every round (Bonferroni)."""
        significance = (1 - confidence) / max(1, (num_candidates - 1) * num_rounds)
        return cls(significance, max(statistics.PERMUTATIONS, math.ceil(4 / significance)))

    def compare(self, first: RatioOfSums, second: RatioOfSums) -> Comparison:
        """The difference, with an interval of the confidence that counts."""
        return statistics.compare(first, second, self.draws, self.draws, 1 - self.significance)

    def is_better(self, comparison: Comparison) -> bool:
        """Whether the first one is significantly better."""
        return comparison.difference.low > 0 and comparison.p_value <= self.significance


@dataclass(frozen=True)
class Round:
    """What one round found at one budget.

    Args:
        num_images: on which candidates were measured so far.
        scores: of the candidates that were left, and of the baseline.
        best: the candidate with the highest score.
        behind: what the best is ahead of every other candidate.
        dropped: those that are significantly worse.
    """

    num_images: int
    scores: dict[str, RatioOfSums]
    best: str
    behind: dict[str, Comparison]
    dropped: tuple[str, ...]


@dataclass
class Level:
    """The candidates at one budget, and what is known of them.

    Args:
        left: candidates that are not significantly worse than the best.
        baseline: what a candidate must beat to be chosen; measured in every round, never left out, never chosen.
        rules: when two settings differ.
        rounds: so far.
    """

    left: list[str]
    baseline: str
    rules: Rules
    rounds: list[Round] = field(default_factory=list)

    @property
    def asked(self) -> list[str]:
        """What the next round measures; nothing once a single candidate is left that beats the baseline."""
        if len(self.left) == 1 and self.rounds:
            scores = self.rounds[-1].scores
            if self.rules.is_better(self.rules.compare(scores[self.left[0]], scores[self.baseline])):
                return []
        return [*self.left, self.baseline] if self.left else []

    def judge(self, scores: dict[str, RatioOfSums]) -> None:
        """Leave out what is significantly worse than the best; `scores` are of all that was asked, on all images."""
        best = max(self.left, key=lambda name: scores[name].value)
        behind = {name: self.rules.compare(scores[best], scores[name]) for name in self.left if name != best}
        dropped = tuple(name for name, comparison in behind.items() if self.rules.is_better(comparison))
        self.left = [name for name in self.left if name not in dropped]
        self.rounds.append(Round(len(scores[best].images), scores, best, behind, dropped))


def round_sizes(first: int, total: int) -> list[int]:
    """Images that each round has measured at its end: `first`, twice as many, and so on, at last `total`."""
    sizes = []
    while first < total:
        sizes.append(first)
        first *= 2
    return [*sizes, total]


def halve(
    levels: dict[str, Level],
    sizes: Iterable[int],
    measure: Callable[[dict[str, list[str]], int], dict[str, dict[str, RatioOfSums]]],
) -> None:
    """Run the rounds, all levels together.

    Args:
        levels: by their names; changed in place.
        sizes: see [`round_sizes`].
        measure: of the names that are asked at each level, the scores on so many images, the same for all.
    """
    for num_images in sizes:
        asked = {name: names for name, level in levels.items() if (names := level.asked)}
        if not asked:
            return
        scores = measure(asked, num_images)
        for name in asked:
            levels[name].judge(scores[name])
