"""The choice at one budget: the simplest of what is as good as the best, or none, and how many images would help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from transformers_litelvlm.calibration.candidates import SIMPLICITY
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
        redrawn: how often each setting is chosen when the images are drawn again; see [`choose_again`].
        reason: all this in words.
    """

    chosen: str | None
    best: str
    alike: tuple[str, ...]
    over_baseline: dict[str, Comparison]
    num_images: int
    images_needed: int | None
    difference: float | None
    redrawn: dict[str, float]
    reason: str


def choose(
    level: Level, simplicity: Mapping[str, tuple[int, ...]], smallest_difference: float, confidence: float
) -> Choice:
    """Choose the simplest candidate that is not significantly worse than the best and significantly better than the
    baseline.

    Args:
        level: after its rounds.
        simplicity: of every candidate, see [`Candidate`].
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
        if chosen != last.best:
            rules_and_both = zip(SIMPLICITY, simplicity[chosen], simplicity[last.best])
            reason += f"; simpler than that by the rule: {next(rule for rule, a, b in rules_and_both if a != b)}"
        again = choose_again(level, simplicity, confidence)
        return Choice(
            chosen,
            last.best,
            alike,
            over,
            last.num_images,
            None,
            None,
            again,
            reason + _how_sure(chosen, again, confidence),
        )
    seen = over[last.best].difference.value
    difference = max(seen, smallest_difference)
    needed = statistics.images_needed(
        last.scores[last.best], last.scores[level.baseline], difference, rules.significance
    )
    about = "as was seen" if difference == seen else f"that matters (seen: {seen:+.4f})"
    needed = max(needed, last.num_images + 1)
    reason = (
        f"no setting is significantly better than {level.baseline} on {last.num_images} images; a difference of "
        f"{difference:.4f}, {about}, needs about {needed} images"
    )
    return Choice(None, last.best, alike, over, last.num_images, needed, difference, {}, reason)


def choose_again(level: Level, simplicity: Mapping[str, tuple[int, ...]], confidence: float) -> dict[str, float]:
    """How often each setting would be chosen on other images like those of the last round; arguments as [`choose`].

    As many of its images are drawn, with repetition, and the rule of [`choose`] is applied to what was measured on
    them. The tests are by normal approximation, since a draw cannot be resampled in turn.

    Returns:
        Share of the draws by the name of the setting, the most frequent first; `""` for no choice. Sums to 1.
    """
    scores, rules = level.rounds[-1].scores, level.rules
    names = sorted((name for name in scores if name != level.baseline), key=lambda name: simplicity[name])
    by_setting = [scores[name] for name in [*names, level.baseline]]
    drawn = statistics.draw_again(by_setting)
    values, baseline = drawn[:-1], drawn[-1]
    shares = np.stack([score.shares for score in by_setting])
    errors = np.std(shares[:, None] - shares, axis=-1, ddof=1) / math.sqrt(shares.shape[1])
    quantile = NormalDist().inv_cdf
    best = values.argmax(0)
    behind = values.max(0) - values <= quantile((1 + confidence) / 2) * errors[best, :-1].T
    is_better = values - baseline > quantile(1 - rules.significance / 2) * errors[:-1, -1:]
    can_be_chosen = behind & is_better
    places = np.where(can_be_chosen.any(0), can_be_chosen.argmax(0), len(names))
    counts = np.bincount(places, minlength=len(names) + 1) / drawn.shape[1]
    found = {name: float(share) for name, share in zip([*names, ""], counts, strict=True) if share}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _how_sure(chosen: str, redrawn: Mapping[str, float], confidence: float) -> str:
    share = redrawn.get(chosen, 0.0)
    if share >= confidence:
        return f"; {share:.0%} of {statistics.RESAMPLES} redraws of the images choose it, too"
    others = ", ".join(
        f"{name or 'nothing'} in {part:.0%}" for name, part in redrawn.items() if name != chosen and part >= 0.01
    )
    return (
        f"; NOT SURE: redraws of the images choose it in {share:.0%} of the cases, {others}. More images "
        "(--max-images) can tell them apart"
    )
