"""The choice at one budget: the simplest of what is as good as the best, or none, and how many images would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers_litelvlm.calibration.halving import Level, Rules
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.statistics import Comparison


@dataclass(frozen=True)
class Choice:
    """What was chosen at a budget, and why.

    Args:
        chosen: name of the candidate; `None` if nothing can be told apart.
        best: the candidate with the highest score.
        alike: what is not significantly worse than the best, the simplest first.
        over_baseline: what each of these is ahead of the baseline.
        num_images: on which this rests.
        images_needed: if nothing was chosen, images that would show `difference` between the best and the baseline, in
            four of five calibrations, if images vary as those that were seen.
        difference: the one that was seen, or the smallest that would matter if that is larger.
        reason: all this in words.
    """

    chosen: str | None
    best: str
    alike: tuple[str, ...]
    over_baseline: dict[str, Comparison]
    num_images: int
    images_needed: int | None
    difference: float | None
    reason: str


def choose(level: Level, simplicity: Mapping[str, Any], smallest_difference: float, confidence: float) -> Choice:
    """Choose the simplest candidate that is not significantly worse than the best and significantly better than the
    baseline.

    Args:
        level: after its rounds.
        simplicity: of every candidate, what compares as less for a simpler one.
        smallest_difference: that would matter, in the unit of the score.
        confidence: of one comparison with the best. What left out a candidate had to be surer, because all comparisons
            share it; here that would only let in simple settings that are worse.
    """
    last, rules = level.rounds[-1], level.rules
    strict = Rules(1 - confidence, rules.draws)
    best = last.scores[last.best]
    close = [
        name
        for name in level.left
        if name == last.best or not strict.is_better(strict.compare(best, last.scores[name]))
    ]
    alike = tuple(sorted(close, key=lambda name: simplicity[name]))
    over = {name: rules.compare(last.scores[name], last.scores[level.baseline]) for name in alike}
    chosen = next((name for name in alike if rules.is_better(over[name])), None)
    if chosen is not None:
        reason = f"the best: every other setting is significantly worse, and so is {level.baseline}"
        if len(alike) > 1:
            reason = (
                f"the simplest of {len(alike)} settings that are not significantly worse than the best, {last.best}, "
                f"and significantly better than {level.baseline}"
            )
        return Choice(chosen, last.best, alike, over, last.num_images, None, None, reason)
    seen = over[last.best].difference.value
    difference = max(seen, smallest_difference)
    needed = statistics.images_needed(
        last.scores[last.best], last.scores[level.baseline], difference, rules.significance
    )
    about = "as was seen" if difference == seen else f"that matters (seen: {seen:+.4f})"
    reason = (
        f"no setting is significantly better than {level.baseline} on {last.num_images} images; a difference of "
        f"{difference:.4f}, {about}, needs about {max(needed, last.num_images + 1)} images"
    )
    return Choice(None, last.best, alike, over, last.num_images, max(needed, last.num_images + 1), difference, reason)
