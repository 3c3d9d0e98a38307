"""Paired timing: which function ran when, and what the numbers say."""

import time

import pytest

from transformers_litelvlm.benchmark.timing import PairedTimes, time_pairs


def test_runs_are_interleaved_and_the_order_alternates():
    runs = []
    told: list[int] = []
    times = time_pairs(lambda: runs.append("a"), lambda: runs.append("b"), pairs=3, warmup=1, after_each=told.append)
    assert ["ab"[which] for which in told] == runs
    assert "".join(runs) == "ab" + "ab" + "ba" + "ab"
    assert len(times.first) == len(times.second) == 3


def test_the_slow_one_is_the_slow_one():
    times = time_pairs(lambda: time.sleep(0.02), lambda: time.sleep(0.005), pairs=5, warmup=0)
    assert 0.018 < times.medians[0] and times.medians[1] < 0.018
    assert times.ratio > 1.5


def test_medians_ratio_and_interval_by_hand():
    times = PairedTimes(first=(1.0, 2.0, 9.0), second=(4.0, 4.0, 4.0))
    assert times.medians == (2.0, 4.0) and times.ratio == 0.5
    low, high = times.ratio_interval()
    # medians of three draws from 1, 2, 9: 1 and 9 each come out with probability 7/27
    assert (low, high) == (0.25, 2.25)
    assert times.ratio_interval() == (low, high), "the same seed gives the same interval"
    exact = PairedTimes(first=(1.0, 10.0, 100.0), second=(2.0, 20.0, 200.0))
    assert exact.ratio_interval() == (0.5, 0.5), "pairs stay together when they are drawn"


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="`pairs` must be at least 1, got 0"):
        time_pairs(lambda: None, lambda: None, pairs=0)
