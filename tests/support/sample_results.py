"""A results.json by the schema of the evaluation runner. The figures are real: docs/results_refshapes.md."""

import json
from pathlib import Path
from typing import Any


UNPRUNED = (0.767, 0.758, 0.778, 0.725, 0.711, 0.741)
# (method, options, budget, token order, seeds): gIoU, low, high, cIoU, low, high; 32 tokens of litelvlm are left out.
MEASURED = {
    ("none", (), None, "raster", 1): UNPRUNED,
    # Before the one of the same budget that the preset `accurate` selects.
    ("litelvlm", (("context_share", 0.5),), 48, "raster", 1): (0.579, 0.566, 0.592, 0.509, 0.495, 0.525),
    ("litelvlm", (), 48, "raster", 1): (0.148, 0.140, 0.157, 0.122, 0.114, 0.130),
    ("litelvlm", (), 16, "raster", 1): (0.114, 0.107, 0.121, 0.094, 0.088, 0.100),
    # Not the layout of the checkpoint: this is not what its preset `balanced` selects.
    ("litelvlm", (), 32, "reference", 1): (0.106, 0.099, 0.113, 0.092, 0.086, 0.099),
    ("random", (), 48, "raster", 5): (0.391, 0.383, 0.399, 0.302, 0.294, 0.310),
}


def _group(key: tuple, figures: tuple) -> dict[str, Any]:
    method, options, budget, order, num_seeds = key
    giou, low, high, ciou, ciou_low, ciou_high = figures
    return {
        "method": method,
        "method_options": dict(options),
        "budget": budget,
        "retention_ratio": None,
        "token_order": order,
        "position_ids": "original" if order == "raster" else "compact",
        "num_seeds": num_seeds,
        "metrics": {"giou": giou, "ciou": ciou},
        "intervals": {"giou": [low, high], "ciou": [ciou_low, ciou_high]},
        "retention": {"giou": giou / UNPRUNED[0], "ciou": ciou / UNPRUNED[3]},
    }


def sample_results() -> dict[str, Any]:
    return {
        "schema": "litelvlm-results/1",
        "model": {
            "path_or_id": "somewhere/refshapes_tiny",
            "class": "LlavaLiteForReferringSegmentation",
            "family": "llava_lite",
            "commit_hash": None,
            "dtype": "bfloat16",
            "num_visual_tokens": 144,
        },
        "dataset": {
            "name": "RefShapes",
            "split": "test",
            "source": "generated",
            "protocol": "all",
            "num_images": 1000,
            "num_expressions": 5080,
            "official_counts": None,
            "counts_match": None,
        },
        "settings": {"budgets": [48, 32, 16]},
        "environment": {
            "transformers_litelvlm": "0.1.0",
            "transformers": "5.23.0",
            "torch": "2.13.0",
            "python": "3.11.2",
            "git_commit": None,
            "hardware": {"device": "cpu", "cpu": "x86-64", "threads": 2, "num_processes": 2},
            "date": "2026-11-20",
        },
        "runs": [],
        "groups": [_group(key, figures) for key, figures in MEASURED.items()],
        "comparisons": [],
        "records": "records.parquet",
    }


def write_results(folder: Path, content: Any = None, name: str = "results.json") -> str:
    path = folder / name
    path.write_text(json.dumps(sample_results() if content is None else content))
    return str(path)


# A row of a batch of records, and a batch of two runs on two sentences, as `RecordStore` has them in a file.
ROW = ["none", "7", "7/0", "a", 1, 2, 0.5, []]
BATCH = {
    "rows": [
        ROW,
        ["none", "7", "7/1", "b", 0, 0, 1.0, ["empty_target"]],
        ["x@8", *ROW[1:4], 2, 2, 1.0, []],
        ["x@8", "7", "7/1", "b", 0, 5, 0.0, ["unreadable_image"]],
    ],
    "costs": [{"run_id": "none", "num_kept": 16.0, "peak_memory": None, "prefill": 0.25}],
    "counts": {"samples": 1, "objects": None, "sentences": 2},
}
