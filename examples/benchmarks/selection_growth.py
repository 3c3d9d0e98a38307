"""How choosing grows with the number of visual tokens: time and memory of scoring + selection, from 576 to 36,864.

    python examples/benchmarks/selection_growth.py --sentences 2 --threads 2

Scores come from the parts of CLIP ViT-L/14 that make them, features are random: no vision tower runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionModel

from transformers_litelvlm.benchmark.inputs import clip_sentences, random_pixels
from transformers_litelvlm.benchmark.memory import activation_bytes
from transformers_litelvlm.benchmark.presets import clip_vit_l, clip_vit_l_text
from transformers_litelvlm.benchmark.report import number, table
from transformers_litelvlm.benchmark.subjects import fill_, free_memory
from transformers_litelvlm.benchmark.timing import machine_line, measured_on, time_once
from transformers_litelvlm.models.guidance.clip import ClipGuidance, ClipTowerEvidence
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.pruning import build_pruner
from transformers_litelvlm.pruning.layers import LayerPruner


SIDES = (24, 48, 96, 192)  # of the grid: 576 tokens times 1, 4, 16 and 64
WIDTH = 4096  # of the language model
SENTENCE = 15
# Some methods compare every token with every other. Sizes that a quadratic method would need longer for are left out.
LIMIT_SECONDS = 60


class RandomStates(TowerStates):
    """States that are the same after every layer, and cost nothing."""

    def after(self, num_layers: int) -> torch.Tensor:
        return self._known[0]


class Selector:
    """Scoring and selection at any number of visual tokens.

    Args:
        method: a method on the vision tower's output.
        sentences: about the picture; two or more need the context score of `litelvlm`.
        dtype: of weights and features.
        device: of both.

    Raises:
        ValueError: the method works elsewhere.
    """

    def __init__(self, method: str, sentences: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pruner: Any = build_pruner(method)
        if isinstance(self.pruner, LayerPruner):
            raise ValueError("It prunes inside the language model: there is no selection before it.")
        config = clip_vit_l(336)
        config.num_hidden_layers = 2  # the one that made the features, and the one that would read them
        text = clip_vit_l_text()
        text.num_hidden_layers = 1
        with torch.device(device):
            self.tower = CLIPVisionModel._from_config(config, dtype=dtype).eval()
            self.guidance = ClipGuidance(text, config.hidden_size, config.projection_dim).to(dtype).eval()
            self.projector = torch.nn.Linear(config.hidden_size, WIDTH, dtype=dtype)
        for module in (self.tower, self.guidance, self.projector):
            fill_(module, seed=0)
        sentence_rows = clip_sentences(text, 1, list(range(sentences)), SENTENCE)
        self.ids, self.mask = (rows.to(device) for rows in sentence_rows.values())
        self.text_embeds = self.guidance.encode_text(self.ids)

    def prepare(self, side: int) -> Callable[[], Any]:
        """A function that selects a ninth of side * side tokens."""
        weight = self.projector.weight
        features = random_pixels(1, 1 + side**2, weight.shape[1]).to(weight.device, weight.dtype)
        states = RandomStates(self.tower, 1, (side, side), features)

        def select() -> Any:
            evidence = ClipTowerEvidence(
                states, self.guidance, self.projector, Guidance(self.ids, self.mask, self.text_embeds)
            )
            return self.pruner.select(evidence, side**2 // 9)

        return select


@torch.inference_mode()
def run_scaling(
    methods: Sequence[str] = ("litelvlm",),
    sentences: int = 2,
    runs: int = 5,
    warmup: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    sides: Sequence[int] = SIDES,
) -> dict[str, Any]:
    """Measure the selection of a ninth of the tokens.

    Returns:
        For each of `methods` the medians in milliseconds and the bytes at every number of tokens, and what
        [`fit_growth`] makes of both; and `skipped`, with reasons.
    """
    results: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for method in methods:
        try:
            selector = Selector(method, sentences, getattr(torch, dtype), torch.device(device))
            functions, peaks = _within_limits(selector, sides, warmup, torch.device(device))
            if len(functions) < 2:
                raise ValueError("It is too slow, or needs too much memory, for more than one size.")
        except ValueError as error:
            skipped[method] = str(error)
            continue
        sizes = [side**2 for side in sides[: len(functions)]]
        seconds = np.array([[time_once(function) for function in functions] for _ in range(runs)])
        medians = np.median(seconds, axis=0) * 1000
        results[method] = {
            "tokens": sizes,
            "median_ms": medians.tolist(),
            "bytes": peaks,
            "time_growth": fit_growth(sizes, medians),
            "memory_growth": fit_growth(sizes, peaks),
        }
    return {
        "benchmark": "scaling of scoring + selection",
        "tokens": [side**2 for side in sides],
        "sentences": sentences,
        "runs": runs,
        "dtype": dtype,
        **measured_on(device),
        "methods": results,
        "skipped": skipped,
    }


def render_growth(result: dict[str, Any]) -> str:
    """What [`run_scaling`] measured, as Markdown."""
    head = ["method", "unit", *(f"{tokens} tokens" for tokens in result["tokens"]), "slope of logs", "linear R2"]
    rows = []
    for method, measured in result["methods"].items():
        for unit, values, growth in (
            ("ms", measured["median_ms"], measured["time_growth"]),
            ("MB", [size / 1e6 for size in measured["bytes"]], measured["memory_growth"]),
        ):
            numbers = [number(value) for value in values] + ["-"] * (len(result["tokens"]) - len(values))
            rows.append([method, unit, *numbers, f"{growth['slope']:.2f}", f"{growth['linear_r2']:.4f}"])
    blocks = [
        "# Scoring and selection of a ninth of the visual tokens",
        f"{result['sentences']} sentence(s), {result['dtype']}, {machine_line(result)}, medians of "
        f"{result['runs']} runs. A slope of 1 is linear growth, 2 quadratic, less if a constant part counts.",
        table(head, rows),
        *(f"{method}: not possible: {reason}" for method, reason in result["skipped"].items()),
    ]
    return "\n\n".join(blocks) + "\n"


def _within_limits(
    selector: Selector, sides: Sequence[int], warmup: int, device: torch.device
) -> tuple[list[Callable[[], Any]], list[int]]:
    """Selection at every size, warmed up, and its bytes; without sizes too large for growth with their square."""
    functions: list[Callable[[], Any]] = []
    peaks: list[int] = []
    for side, larger in zip(sides, [*sides[1:], 0]):
        functions.append(selector.prepare(side))
        seconds = min(time_once(functions[-1]) for _ in range(1 + warmup))
        peaks.append(activation_bytes(functions[-1], device))
        growth = (larger / side) ** 4
        if seconds * growth > LIMIT_SECONDS or peaks[-1] * growth > free_memory(device) / 2:
            break
    return functions, peaks


def fit_growth(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """How values grow with sizes.

    Returns:
        `slope` of log value against log size: 1 if the growth is linear, 2 if it is quadratic, and less if a
        constant part counts; `linear_r2`, the share of the variance that a straight line through the values explains.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    slope = np.polyfit(np.log(x), np.log(y), 1)[0]
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    spread = ((y - y.mean()) ** 2).sum()
    return {"slope": float(slope), "linear_r2": float(1 - (residual**2).sum() / spread) if spread else 1.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["litelvlm"], metavar="NAME", help="before the language model")
    parser.add_argument("--sentences", type=int, default=2, help="about the picture (default: 2, with context scores)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs at every size (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed runs before (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--output-dir", type=Path, help="write scaling.json and scaling.md there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = vars(parser.parse_args(argv))
    threads, folder, as_json = (args.pop(name) for name in ("threads", "output_dir", "json"))
    if threads is not None:
        torch.set_num_threads(threads)
    result = run_scaling(**args)
    texts = {"json": json.dumps(result, indent=2) + "\n", "md": render_growth(result)}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (folder / f"scaling.{suffix}").write_text(text, encoding="utf-8")
    print(texts["json" if as_json else "md"], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
