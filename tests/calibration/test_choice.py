"""The choice on made-up scores: the simplest of what is as good as the best, or none, with a number that is true."""

import numpy as np
import pytest

from tests.support.planted_scores import Planted, level, planted, scores_of
from transformers_litelvlm.calibration.choice import choose
from transformers_litelvlm.calibration.halving import Rules, halve


SIMPLICITY = {"plain": (0, 0), "simple": (1, 0), "clever": (1, 1)}


def chosen(means, num_images=64, noise=0.05, simplicity=SIMPLICITY, smallest=0.02):
    found = level(*(name for name in means if name != "random"))
    halve({"fast": found}, [16, 32, num_images], Planted(fast=planted(means, num_images, 0, noise)))
    return choose(found, simplicity, smallest, 0.95)


def test_the_best_is_chosen_if_the_simpler_ones_are_worse():
    choice = chosen({"plain": 0.40, "simple": 0.50, "clever": 0.60, "random": 0.30})
    assert choice.chosen == choice.best == "clever" and choice.alike == ("clever",)
    assert choice.images_needed is None and "every other setting is significantly worse" in choice.reason


def test_ties_go_to_the_simplest():
    means = {"plain": 0.40, "simple": 0.60, "clever": 0.60, "random": 0.30}
    choice = chosen(means)
    assert choice.chosen == "simple" and set(choice.alike) == {"simple", "clever"}
    # It is the order of simplicity that decides, not names or scores.
    assert chosen(means, simplicity={"plain": (0,), "simple": (2,), "clever": (1,)}).chosen == "clever"


def test_the_reason_names_the_rule_by_which_a_setting_is_simpler_than_the_best():
    means = {"plain": 0.40, "simple": 0.60, "clever": 0.60, "random": 0.30}
    best = chosen(means).best
    other = "clever" if best == "simple" else "simple"
    for places, rule in (((0, 0), "what the checkpoint is set to: nothing changes"), ((1, 0), "methods before the")):
        choice = chosen(means, simplicity={"plain": (2, 0), best: (1, 1), other: places})
        assert (choice.chosen, choice.best) == (other, best)
        assert f"; simpler than that by the rule: {rule}" in choice.reason
    assert "by the rule" not in chosen(means, simplicity={"plain": (2, 0), best: (0, 0), other: (1, 1)}).reason


def test_what_a_single_comparison_finds_worse_is_not_chosen():
    """Though it stayed, since ten comparisons share what may go wrong."""
    found = level("simple", "clever", rounds=1, draws=4000)
    found.rules = Rules(0.001, 4000)
    halve({"fast": found}, [24], Planted(fast=planted({"simple": 0.56, "clever": 0.60, "random": 0.3}, 24)))
    assert sorted(found.left) == ["clever", "simple"] and found.rounds[0].behind["simple"].p_value < 0.05
    choice = choose(found, SIMPLICITY, 0.02, 0.95)
    assert choice.chosen == "clever" and choice.alike == ("clever",)


def test_a_simple_setting_that_may_be_no_better_than_random_is_not_chosen():
    rng = np.random.default_rng(0)
    scores = planted({"simple": 0.50, "clever": 0.60, "random": 0.45}, 64)
    scores["simple"] = scores["simple"] + rng.normal(0, 0.5, 64)  # as good as the best, for all that can be told
    found = level("simple", "clever")
    halve({"fast": found}, [64], Planted(fast=scores))
    assert sorted(found.left) == ["clever", "simple"]
    choice = choose(found, SIMPLICITY, 0.02, 0.95)
    assert choice.chosen == "clever" and choice.alike == ("simple", "clever")


@pytest.mark.parametrize("random", [0.5, 0.6])
def test_nothing_is_chosen_where_nothing_beats_random(random):
    choice = chosen({"plain": 0.5, "simple": 0.5, "clever": 0.5, "random": random}, noise=0.2)
    assert choice.chosen is None and choice.images_needed > 64
    assert "no setting is significantly better than random on 64 images" in choice.reason
    assert f"needs about {choice.images_needed} images" in choice.reason


def test_so_many_images_would_have_shown_the_difference():
    """Equal settings are refused; with as many images as are asked for, the difference is seen four times of five."""
    smallest = 0.07
    found = level("plain", "clever", rounds=1)
    halve({"fast": found}, [64], Planted(fast=planted({"plain": 0.5, "clever": 0.5, "random": 0.5}, 64, noise=0.2)))
    choice = choose(found, SIMPLICITY, smallest, 0.95)
    assert choice.chosen is None and choice.difference == smallest
    rules = Rules(found.rules.significance, 1000)

    def share_seen(num_images: int) -> float:
        seen = 0
        for seed in range(60):
            means = {"clever": 0.5 + smallest, "random": 0.5}
            scores = scores_of(planted(means, num_images, 100 + seed, 0.2), num_images)
            seen += rules.is_better(rules.compare(scores["clever"], scores["random"]))
        return seen / 60

    assert 0.65 < share_seen(choice.images_needed) < 0.95
    assert share_seen(choice.images_needed // 4) < 0.5


def test_a_difference_that_was_seen_needs_fewer_images_than_a_smaller_one():
    means = {"plain": 0.50, "simple": 0.50, "clever": 0.52, "random": 0.40}
    choice = chosen(means, num_images=33, noise=0.4, smallest=0.001)
    assert choice.chosen is None and choice.difference == pytest.approx(
        choice.over_baseline[choice.best].difference.value
    )
    assert choice.images_needed < chosen({**means, "random": 0.52}, 33, 0.4, smallest=0.01).images_needed


def test_two_images_cannot_show_the_largest_difference():
    """Of a precision: all right, and all wrong at random. Six coins fall so in one of 32 cases, two in one of two."""
    found = level("clever", rounds=1)
    found.judge(scores_of({"clever": np.ones(2), "random": np.zeros(2)}, 2))
    choice = choose(found, SIMPLICITY, 0.02, 0.95)
    assert choice.chosen is None and (choice.difference, choice.images_needed) == (1, 6)


def test_a_choice_that_other_images_would_change_says_so():
    """Of two settings with a difference that these images show just so: on others of the kind the simple one is chosen
    as often as the choice is made on images that are truly others."""
    means, noise = {"simple": 0.56, "clever": 0.60, "random": 0.3}, 0.07
    levels = [judged(planted(means, 24, seed, noise), 24) for seed in range(40)]
    choices = [choose(found, SIMPLICITY, 0.02, 0.95) for found in levels]
    assert "NOT SURE" in choices[0].reason and "--max-images" in choices[0].reason
    truly = np.mean([choice.chosen == "simple" for choice in choices])
    redrawn = np.mean([choice.redrawn.get("simple", 0) for choice in choices])
    assert 0.3 < truly < 0.7 and abs(truly - redrawn) < 0.1

    sure = chosen(means, 400, noise)
    assert sure.chosen == "clever" and "NOT SURE" not in sure.reason and "redraws" in sure.reason
    assert sure.redrawn["clever"] > 0.95 and sum(sure.redrawn.values()) == pytest.approx(1)
    assert chosen({"plain": 0.5, "random": 0.5}, noise=0.2).redrawn == {}


def judged(scores, num_images):
    found = level(*(name for name in scores if name != "random"), rounds=1)
    halve({"fast": found}, [num_images], Planted(fast=scores))
    return found
