"""Statements about planted data: what was put in comes out, within intervals that cover as often as they say."""

import numpy as np
import pytest

from transformers_litelvlm.analysis.association import auroc, pearson, spearman
from transformers_litelvlm.analysis.image import OWN
from transformers_litelvlm.analysis.measuring import UNPRUNED
from transformers_litelvlm.analysis.summary import Measurements, ablation, agreement, verdicts, where_referents_stand


NUM_IMAGES, NUM_SENTENCES, NUM_TOKENS = 60, 3, 144


def sentences():
    for image in range(NUM_IMAGES):
        for sentence in range(NUM_SENTENCES):
            yield f"image {image}", f"{image}/{sentence}"


@pytest.mark.parametrize(("shift", "low", "high"), [(-8.0, 0.99, 1.0), (8.0, 0.0, 0.01)])
def test_a_planted_reversal(shift, low, high):
    """Referent tokens with lower similarity: above 0.99 for LOW similarity; with higher: below 0.01."""
    [row] = where_referents_stand(Measurements(planted_auroc(shift)))
    assert low <= row["auroc"]["value"] <= high and row["score"] == "dot" and row["control"] == OWN
    assert row["share_above_half"]["value"] == float(shift < 0)


def test_no_reversal():
    [row] = where_referents_stand(Measurements(planted_auroc(0.0)))
    assert row["auroc"]["low"] < 0.5 < row["auroc"]["high"] < 0.53
    assert row["share_above_half"]["low"] < 0.5 < row["share_above_half"]["high"]


def planted_auroc(shift: float):
    generator = np.random.default_rng(0)
    for image, sentence in sentences():
        referent = np.arange(NUM_TOKENS) < 12
        similarity = generator.normal(size=NUM_TOKENS) + shift * referent
        yield image, sentence, "auroc", "dot", OWN, auroc(-similarity, referent)


@pytest.mark.parametrize("planted", [0.0, 0.5, 0.9])
def test_a_planted_correlation_lies_in_its_interval(planted):
    generator, rows = np.random.default_rng(0), []
    for image, sentence in sentences():
        score, noise = generator.normal(size=(2, NUM_TOKENS))
        signal = planted * score + np.sqrt(1 - planted**2) * noise
        rows.append((image, sentence, "spearman", "dot", "gradient", spearman(score, signal)))
        rows.append((image, sentence, "pearson", "dot", "gradient", pearson(score, signal)))
    [row] = agreement(Measurements(rows))
    assert row["pearson"]["low"] < planted < row["pearson"]["high"]
    assert row["pearson"]["high"] - row["pearson"]["low"] < 0.06
    rank = 6 / np.pi * np.arcsin(planted / 2)  # of normal variables
    assert row["spearman"]["low"] - 0.005 < rank < row["spearman"]["high"] + 0.005
    assert row["partial"] is None


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    """500 data sets with images of their own: the mean that they were drawn with lies in 92 to 98 % of intervals."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(500):
        of_image = generator.normal(0.6, 0.1, 100)
        rows = [
            (f"{image}", f"{image}/{sentence}", "auroc", "dot", OWN, value + generator.normal(0, 0.1))
            for image, value in enumerate(of_image)
            for sentence in range(3)
        ]
        [row] = where_referents_stand(Measurements(rows))
        covered += row["auroc"]["low"] <= 0.6 <= row["auroc"]["high"]
    assert 0.92 <= covered / 500 <= 0.98


def planted_masks(**scores: float):
    """Pixels of masks whose IoU is about the one of each selection."""
    generator = np.random.default_rng(0)
    for image, sentence in sentences():
        noise = generator.normal(0, 0.05)
        for name, iou in scores.items():
            size = UNPRUNED if name == UNPRUNED else "48"
            value = round(1000 * float(np.clip(iou + noise + generator.normal(0, 0.02), 0, 1)))
            yield image, sentence, "intersection", name, size, value
            yield image, sentence, "union", name, size, 1000


def test_the_line_that_settles_it():
    rows = planted_masks(**{UNPRUNED: 0.8, "reversed": 0.3, "random#0": 0.5, "random#1": 0.5, "context": 0.3})
    found = {row["against"]: row for row in verdicts(Measurements(rows), ["48"])}
    assert list(found) == ["random", "context", UNPRUNED]
    assert found["random"]["verdict"] == found[UNPRUNED]["verdict"] == "worse"
    assert found["random"]["difference"]["value"] == pytest.approx(-0.2, abs=0.01)
    assert found["random"]["p_value"] < 0.001
    assert found["context"]["verdict"] == "not distinguishable" and found["context"]["p_value"] > 0.05
    better = verdicts(Measurements(planted_masks(**{UNPRUNED: 0.8, "reversed": 0.7, "random#0": 0.5})), ["48"])
    assert [row["verdict"] for row in better] == ["better", "worse"]


def test_selections_on_fewer_sentences_are_compared_on_these_alone():
    rows = list(planted_masks(**{UNPRUNED: 0.8, "random#0": 0.5, "oracle": 0.9}))
    # Leave-one-out of the first sentence of each image; random does worse on these.
    first = [row for row in rows if row[3] == "oracle" and row[1].endswith("/0")]
    rows += [(*row[:3], "leave_one_out_iou", *row[4:]) for row in first]
    rows = [
        (*row[:5], 200) if row[2:4] == ("intersection", "random#0") and row[1].endswith("/0") else row for row in rows
    ]
    found = {row["selection"]: row for row in ablation(Measurements(rows), ["48"])}
    assert found["leave_one_out_iou"]["num_sentences"] == NUM_IMAGES and found["oracle"]["num_sentences"] == 180
    assert found["leave_one_out_iou"]["against_random"]["difference"]["value"] == pytest.approx(0.7, abs=0.02)
    assert found["oracle"]["against_random"]["difference"]["value"] == pytest.approx(0.5, abs=0.02)
    assert found[UNPRUNED]["giou"]["value"] == pytest.approx(0.8, abs=0.02)
    assert found["random"]["against_random"] is None
