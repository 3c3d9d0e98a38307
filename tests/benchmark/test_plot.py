"""The picture of a benchmark: one bar for each unpruned model, legends beside what they explain, no wasted axis."""

import itertools

import numpy as np
import pytest

from transformers_litelvlm.benchmark.plot import figure_of
from transformers_litelvlm.benchmark.stages import STAGES


def result_of(dtypes, budgets):
    points = []
    for dtype, budget in itertools.product(dtypes, budgets):
        stages = {
            side: {
                "stages": {stage: {"median_ms": 10.0 + len(dtype) + budget * (side == "pruned")} for stage in STAGES}
            }
            for side in ("unpruned", "pruned")
        }
        speed = {"speedup": 1.5, "speedup_interval_95": [1.4, 1.7]}
        point = {"method": "litelvlm", "budget": budget, "num_visual_tokens": 576, "batch_size": 1, "sentences": 1}
        points.append({**point, "dtype": dtype, "end_to_end": speed, "flops": {"bound": 1.6}, "stages": stages})
    return {"model": "grounding-1b", "device": "cpu", "threads": 2, "points": points}


@pytest.fixture
def drawn():
    pytest.importorskip("matplotlib")
    figure = figure_of(result_of(["float32", "bfloat16"], [192, 128, 64]))
    figure.draw_without_rendering()
    return figure


def test_legends_are_inside_the_picture_and_an_unpruned_model_keeps_all():
    pytest.importorskip("matplotlib")
    result = result_of(["float32"], [192])
    result["points"][0]["num_kept_mean"] = 180.5
    figure = figure_of(result)
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        box = axes.get_legend().get_window_extent()
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height
    unpruned, pruned = (label.get_text() for label in figure.axes[1].get_yticklabels())
    assert "unpruned, 576 of 576 tokens, batch" in unpruned and "192 of 576 tokens, kept 180.5, batch" in pruned


def test_one_unpruned_bar_for_each_number_format(drawn):
    labels = [label.get_text() for label in drawn.axes[1].get_yticklabels()]
    assert [label.split(",")[0] for label in labels] == (["unpruned"] + ["litelvlm"] * 3) * 2
    assert labels[0].endswith("float32") and labels[4].endswith("bfloat16")
    # Each bar is as long as its stages together.
    lengths = {}
    for bar in drawn.axes[1].patches:
        place = round(bar.get_y() + bar.get_height() / 2)
        lengths[place] = max(lengths.get(place, 0), bar.get_x() + bar.get_width())
    expected = [len(STAGES) * (10 + len("float32") + budget) for budget in (0, 192, 128, 64)]
    assert [lengths[place] for place in range(4)] == pytest.approx(expected)


def test_legends_stand_outside_and_colours_differ(drawn):
    for axes in drawn.axes:
        legend = axes.get_legend().get_window_extent()
        assert not legend.overlaps(axes.get_window_extent()) and legend.y0 >= 0
        assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    colours = {handle.get_facecolor() for handle in drawn.axes[1].get_legend().get_patches()}
    assert len(colours) == len(STAGES)


def test_the_axis_of_speed_ups_is_not_wasted(drawn):
    low, high = drawn.axes[0].get_ylim()
    assert low < 1 and high > 1.7, "all is seen, and where neither is faster"
    assert 0.7 / (high - low) > 0.85
    places = [container.lines[0].get_xdata() for container in drawn.axes[0].containers]
    assert np.abs(places[0] - places[1]).min() > 0.5, "intervals of two formats stand side by side"
    assert np.abs(places[0] - [64, 128, 192]).max() < 10
