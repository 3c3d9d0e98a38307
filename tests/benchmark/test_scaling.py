"""Growth of the selection: the fit on data whose growth is known, and the measurement on small grids."""

import numpy as np
import pytest

from transformers_litelvlm.benchmark import scaling
from transformers_litelvlm.benchmark.report import render_scaling
from transformers_litelvlm.benchmark.scaling import fit_growth, run_scaling


SIZES = [576, 2304, 9216, 36864]


def test_fit_of_known_growth():
    linear, quadratic = np.array(SIZES) * 3e-6, np.array(SIZES) ** 2.0
    assert fit_growth(SIZES, linear) == pytest.approx({"slope": 1.0, "linear_r2": 1.0})
    assert fit_growth(SIZES, quadratic)["slope"] == pytest.approx(2.0)
    assert 0.8 < fit_growth(SIZES, quadratic)["linear_r2"] < 0.98
    # A constant part flattens the logarithms, but stays on a line.
    offset = fit_growth(SIZES, linear + 0.01)
    assert offset["slope"] < 0.7 and offset["linear_r2"] == pytest.approx(1.0)


def test_memory_of_the_selection_grows_linearly():
    result = run_scaling(["litelvlm", "fastv", "tome"], runs=1, warmup=0, sides=(12, 24, 48))
    measured = result["methods"]["litelvlm"]
    assert result["tokens"] == measured["tokens"] == [144, 576, 2304] and len(measured["median_ms"]) == 3
    assert measured["memory_growth"]["slope"] == pytest.approx(1.0, abs=0.05)
    assert measured["memory_growth"]["linear_r2"] > 0.999
    assert "inside the language model" in result["skipped"]["fastv"] and "tome" in result["skipped"]
    text = render_scaling(result)
    assert "| litelvlm | MB " in text and "576 tokens" in text and "fastv: not possible" in text


def test_sizes_that_could_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "LIMIT_SECONDS", 0)
    assert "too slow" in run_scaling(["uniform"], runs=1, sides=(4, 8, 16))["skipped"]["uniform"]
