"""Rounds on made-up scores: what leaves, when, and how sure that is."""

import numpy as np
import pytest

from tests.support.planted_scores import Planted, level, planted
from transformers_litelvlm.calibration.halving import Rules, halve, round_sizes
from transformers_litelvlm.evaluation.statistics import mean


SIZES = [16, 32, 64]


def test_every_round_doubles_the_images():
    assert round_sizes(16, 256) == [16, 32, 64, 128, 256]
    assert round_sizes(16, 100) == [16, 32, 64, 100]
    assert round_sizes(16, 10) == [10]


def test_what_is_worse_leaves_and_is_not_measured_again():
    found = level("good", "near", "bad")
    measure = Planted(fast=planted({"good": 0.60, "near": 0.57, "bad": 0.30, "random": 0.40}, 64))
    halve({"fast": found}, SIZES, measure)
    assert measure.asked[0] == ("fast", ["good", "near", "bad", "random"], 16)
    assert [entry.dropped for entry in found.rounds][0] == ("bad",)
    assert measure.asked[1] == ("fast", ["good", "near", "random"], 32)
    assert found.left == ["good"]
    # The difference that was planted lies in the interval that is said.
    gone = next(entry for entry in found.rounds if "near" in entry.dropped).behind["near"].difference
    assert 0 < gone.low < 0.03 < gone.high


def test_a_level_that_is_decided_is_not_measured_further():
    found, open_level = level("good", "bad"), level("one", "other")
    measure = Planted(
        fast=planted({"good": 0.6, "bad": 0.3, "random": 0.4}, 64),
        accurate=planted({"one": 0.6, "other": 0.6, "random": 0.4}, 64, seed=1),
    )
    halve({"fast": found, "accurate": open_level}, SIZES, measure)
    assert [(name, count) for name, _, count in measure.asked] == [
        ("fast", 16), ("accurate", 16), ("accurate", 32), ("accurate", 64),
    ]  # fmt: skip
    assert sorted(open_level.left) == ["one", "other"]


def test_sentences_about_one_image_are_not_counted_as_images():
    """Own data often have a row for each sentence; what is said of images needed counts images."""
    found = level("good", "bad")
    scores = planted({"good": 0.6, "bad": 0.3, "random": 0.6}, 64)
    by_image = {name: mean(values, np.arange(64) // 4) for name, values in scores.items()}
    halve({"fast": found}, [64], lambda asked, _: {"fast": by_image})
    assert found.rounds[0].num_images == 16


def test_one_candidate_that_does_not_beat_the_baseline_goes_on():
    found = level("good", "bad")
    measure = Planted(fast=planted({"good": 0.6, "bad": 0.3, "random": 0.6}, 64))
    halve({"fast": found}, SIZES, measure)
    assert found.left == ["good"] and [count for *_, count in measure.asked] == SIZES


def test_the_confidence_is_shared_by_all_comparisons():
    rules = Rules.of(0.95, 11, 5)
    assert rules.significance == pytest.approx(0.05 / 50)
    assert Rules.of(0.95, 1, 1).significance == pytest.approx(0.05)
    # Enough draws for a p-value that small.
    assert 1 / (Rules.of(0.95, 1000, 10).draws + 1) < Rules.of(0.95, 1000, 10).significance


def test_the_best_stays():
    """Ten settings that are alike, one slightly better, three rounds: the better one is there at the end."""
    stayed = 0
    for seed in range(30):
        means = {f"s{number}": 0.5 for number in range(9)} | {"best": 0.505, "random": 0.3}
        found = level(*(name for name in means if name != "random"), draws=1000)
        halve({"fast": found}, [16, 32], Planted(fast=planted(means, 32, seed, noise=0.1)))
        stayed += "best" in found.left
    assert stayed >= 28


def test_scores_of_the_baseline_never_count_as_the_best():
    found = level("a", "b")
    halve({"fast": found}, [32], Planted(fast=planted({"a": 0.4, "b": 0.41, "random": 0.7}, 32)))
    assert found.rounds[0].best in ("a", "b") and sorted(found.left) == ["a", "b"]
    assert np.isclose(found.rounds[0].scores["random"].value, 0.7, atol=0.1)
