"""Scores of images that are made up, with known differences between settings: a calibration without a model."""

from __future__ import annotations

import numpy as np

from transformers_litelvlm.calibration.halving import Level, Rules
from transformers_litelvlm.evaluation.statistics import RatioOfSums, mean


def planted(means: dict[str, float], num_images: int, seed: int = 0, noise: float = 0.05) -> dict[str, np.ndarray]:
    """A score for every setting and image: its mean, how hard the image is, and noise of its own, normal."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 0.2, num_images)
    return {name: value + difficulty + rng.normal(0, noise, num_images) for name, value in means.items()}


def scores_of(scores: dict[str, np.ndarray], num_images: int) -> dict[str, RatioOfSums]:
    """As the rounds of a calibration compare them, of the first images."""
    return {name: mean(values[:num_images], np.arange(num_images)) for name, values in scores.items()}


class Planted:
    """Gives the rounds what was made up, and remembers what they asked for.

    Attributes:
        asked: level, names and number of images of every round.
    """

    def __init__(self, **levels: dict[str, np.ndarray]) -> None:
        self.levels, self.asked = levels, []

    def __call__(self, asked: dict[str, list[str]], num_images: int) -> dict[str, dict[str, RatioOfSums]]:
        self.asked += [(level, names, num_images) for level, names in asked.items()]
        return {
            level: scores_of({name: self.levels[level][name] for name in names}, num_images)
            for level, names in asked.items()
        }


def level(*names: str, rounds: int = 3, draws: int = 2000) -> Level:
    """Candidates at one budget, with the baseline `random`."""
    significance = Rules.of(0.95, len(names), rounds).significance
    return Level(list(names), "random", Rules(significance, draws))
