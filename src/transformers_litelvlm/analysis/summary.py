"""From the numbers of single sentences to statements: means with intervals over images, and paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from transformers_litelvlm.analysis.measuring import UNPRUNED, Row
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.statistics import RatioOfSums


# Below this p-value two selections are told apart.
SIGNIFICANCE = 0.05


class Measurements:
    """The numbers of all sentences, by what was measured; `rows` are those of `measuring`."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._values: dict[tuple[str, str, str], dict[tuple[str, str], float]] = defaultdict(dict)
        for image, sentence, quantity, of, against, value in rows:
            self._values[quantity, of, against][image, sentence] = value

    def keys(self, quantity: str) -> list[tuple[str, str]]:
        """What the quantity was measured of and against, in the order of the first sentence."""
        return [(of, against) for name, of, against in self._values if name == quantity]

    def mean(self, quantity: str, of: str, against: str) -> RatioOfSums | None:
        """Mean over sentences; `None` if there is none."""
        values = self._values.get((quantity, of, against), {})
        return _mean(list(values.values()), values) if values else None

    def share_above(self, quantity: str, of: str, against: str, level: float) -> RatioOfSums | None:
        """Share of the sentences above a level, those at it count half."""
        values = self._values.get((quantity, of, against), {})
        shares = [(value > level) + 0.5 * (value == level) for value in values.values()]
        return _mean(shares, values) if values else None

    def selections(self) -> list[str]:
        """Names, seeds left off, in the order of the first sentence."""
        return list(dict.fromkeys(of.partition("#")[0] for of, _ in self.keys("intersection")))

    def num_sentences(self, selection: str, size: str) -> int:
        """How many a selection has at a budget."""
        return len(self._values["intersection", self._names(selection, size)[0], size])

    def _names(self, selection: str, size: str) -> list[str]:
        """Of a selection, with its seeds."""
        found = self.keys("intersection")
        return [of for of, against in found if against == size and of.partition("#")[0] == selection]

    def iou(
        self, selection: str, size: str, kind: str = "giou", like: tuple[str, str] | None = None
    ) -> RatioOfSums | None:
        """gIoU or cIoU, by `kind`, of a selection at a budget as it was given, over its seeds; only on the sentences
        that `like`, another selection and budget, has."""
        names = self._names(selection, size)
        if not names:
            return None
        sentences = list(self._values["intersection", names[0], size])
        if like is not None:
            wanted = self._values["intersection", self._names(*like)[0], like[1]]
            sentences = [sentence for sentence in sentences if sentence in wanted]
        above, below = (
            [[self._values[quantity, name, size][sentence] for sentence in sentences] for name in names]
            for quantity in ("intersection", "union")
        )
        score = getattr(statistics, kind)
        return score(above, below, [image for image, _ in sentences])


def _mean(values: list[float], sentences: Iterable[tuple[str, str]]) -> RatioOfSums:
    return statistics.mean(np.asarray(values, np.float64), [image for image, _ in sentences])


def interval(score: RatioOfSums | None) -> dict[str, float] | None:
    """A score with its interval over images, as in `analysis.json`."""
    if score is None:
        return None
    return _as_json(statistics.bootstrap_interval(score))


def _as_json(found: statistics.Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def compared(first: RatioOfSums, second: RatioOfSums) -> dict[str, Any]:
    """The difference of two selections on the same images, and what it says."""
    found = statistics.compare(first, second)
    difference, p_value = found.difference, found.p_value
    verdict = "not distinguishable"
    if p_value < SIGNIFICANCE and (difference.low > 0 or difference.high < 0):
        verdict = "better" if difference.value > 0 else "worse"
    return {"difference": _as_json(difference), "p_value": p_value, "verdict": verdict}


def verdicts(measurements: Measurements, sizes: list[str]) -> list[dict[str, Any]]:
    """The reversed ranking against random tokens, against context alone, and against all tokens, at each budget."""
    found = []
    for size in sizes:
        for other in ("random", "context", UNPRUNED):
            reversed_, against = measurements.iou("reversed", size), measurements.iou(other, size)
            if other == UNPRUNED:
                against = measurements.iou(UNPRUNED, UNPRUNED)
            if reversed_ is not None and against is not None:
                found.append({"budget": size, "against": other, **compared(reversed_, against)})
    return found


def where_referents_stand(measurements: Measurements) -> list[dict[str, Any]]:
    """Claim 1, a row for each score and control."""
    return [
        {
            "score": of,
            "control": against,
            "auroc": interval(measurements.mean("auroc", of, against)),
            "share_above_half": interval(measurements.share_above("auroc", of, against, 0.5)),
        }
        for of, against in measurements.keys("auroc")
    ]


def regions(measurements: Measurements) -> list[dict[str, Any]]:
    """Mean of each score inside the referent, in the ring around it, and outside of both."""
    names = list(dict.fromkeys(of for of, _ in measurements.keys("mean")))
    places = ("inside", "ring", "outside")
    return [{"score": of, **{p: interval(measurements.mean("mean", of, p)) for p in places}} for of in names]


def agreement(measurements: Measurements) -> list[dict[str, Any]]:
    """Claim 2, a row for each score and signal of the language model."""
    return [
        {
            "score": of,
            "signal": against,
            **{kind: interval(measurements.mean(kind, of, against)) for kind in ("spearman", "pearson", "partial")},
        }
        for of, against in measurements.keys("spearman")
    ]


def ablation(measurements: Measurements, sizes: list[str]) -> list[dict[str, Any]]:
    """Claim 3, a row for each selection and budget."""
    full = measurements.iou(UNPRUNED, UNPRUNED)
    rows = [
        {
            "selection": UNPRUNED,
            "budget": None,
            "giou": interval(full),
            "ciou": interval(measurements.iou(UNPRUNED, UNPRUNED, "ciou")),
            "against_random": None,
            "num_sentences": measurements.num_sentences(UNPRUNED, UNPRUNED),
        }
    ]
    for size in sizes:
        for name in measurements.selections():
            score = None if name == UNPRUNED else measurements.iou(name, size)
            if score is None:
                continue
            random = measurements.iou("random", size, like=(name, size))
            rows.append(
                {
                    "selection": name,
                    "budget": size,
                    "giou": interval(score),
                    "ciou": interval(measurements.iou(name, size, "ciou")),
                    "against_random": None if name == "random" or random is None else compared(score, random),
                    "num_sentences": measurements.num_sentences(name, size),
                }
            )
    return rows
