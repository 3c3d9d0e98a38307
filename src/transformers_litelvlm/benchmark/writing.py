"""The files of a benchmark, all of them or none."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from transformers_litelvlm.benchmark.plot import plot
from transformers_litelvlm.benchmark.report import render, render_scaling
from transformers_litelvlm.utils.files import to_json, write_atomically


def check_plotting() -> None:
    """Raises ValueError if [`write_benchmark`] could not draw, to be called before hours of measuring."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "An output folder gets a plot, which needs matplotlib: `pip install transformers-litelvlm[benchmark]`."
        )


def write_benchmark(result: dict[str, Any], folder: str | os.PathLike) -> None:
    """Write benchmark.json, benchmark.md and benchmark.png into `folder`; files of these names are replaced."""
    with write_atomically(folder) as staging:
        (staging / "benchmark.json").write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
        (staging / "benchmark.md").write_text(render(result), encoding="utf-8")
        plot(result, staging / "benchmark.png")


def write_scaling(result: dict[str, Any], folder: str | os.PathLike) -> None:
    """Write scaling.json and scaling.md into `folder`; files of these names are replaced."""
    with write_atomically(folder) as staging:
        (staging / "scaling.json").write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
        (staging / "scaling.md").write_text(render_scaling(result), encoding="utf-8")
