"""Growth of the selection: the fit on data whose growth is known, and the measurement on small grids."""

import json

import numpy as np
import pytest


@pytest.fixture
def growth(script):
    return script("selection_growth")


SIZES = [576, 2304, 9216, 36864]


def test_fit_of_known_growth(growth):
    fit_growth = growth.fit_growth
    linear, quadratic = np.array(SIZES) * 3e-6, np.array(SIZES) ** 2.0
    assert fit_growth(SIZES, linear) == pytest.approx({"slope": 1.0, "linear_r2": 1.0})
    assert fit_growth(SIZES, quadratic)["slope"] == pytest.approx(2.0)
    assert 0.8 < fit_growth(SIZES, quadratic)["linear_r2"] < 0.98
    # A constant part flattens the logarithms, but stays on a line.
    offset = fit_growth(SIZES, linear + 0.01)
    assert offset["slope"] < 0.7 and offset["linear_r2"] == pytest.approx(1.0)


@pytest.mark.slow
def test_memory_of_the_selection_grows_linearly(growth):
    result = growth.run_scaling(["litelvlm", "fastv", "tome"], runs=1, warmup=0, sides=(12, 24, 48))
    measured = result["methods"]["litelvlm"]
    assert result["tokens"] == measured["tokens"] == [144, 576, 2304] and len(measured["median_ms"]) == 3
    assert measured["memory_growth"]["slope"] == pytest.approx(1.0, abs=0.05)
    assert measured["memory_growth"]["linear_r2"] > 0.999
    assert "inside the language model" in result["skipped"]["fastv"] and "tome" in result["skipped"]
    text = growth.render_growth(result)
    assert "| litelvlm | MB " in text and "576 tokens" in text and "fastv: not possible" in text


def test_sizes_that_could_take_too_long_are_left_out(growth, monkeypatch):
    monkeypatch.setattr(growth, "LIMIT_SECONDS", 0)
    assert "too slow" in growth.run_scaling(["uniform"], runs=1, sides=(4, 8, 16))["skipped"]["uniform"]


def test_command(growth, capsys, monkeypatch, tmp_path):
    original = growth.run_scaling
    monkeypatch.setattr(growth, "run_scaling", lambda **kwargs: original(**kwargs, sides=(8, 16)))
    assert growth.main(["--runs", "1", "--sentences", "2", "--output-dir", str(tmp_path / "out")]) == 0
    assert "slope of logs" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert saved["sentences"] == 2 and saved["tokens"] == [64, 256]
    assert "slope of logs" in (tmp_path / "out" / "scaling.md").read_text()
