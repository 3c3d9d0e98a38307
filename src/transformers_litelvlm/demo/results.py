"""A comparison as a file to keep: masks as PNG and as run lengths of COCO, the drawings, and what was measured."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_litelvlm.demo.comparing import Comparison
from transformers_litelvlm.demo.pictures import draw_answer, draw_kept
from transformers_litelvlm.serving.answers import describe
from transformers_litelvlm.utils.files import to_json
from transformers_litelvlm.version import __version__


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """What `result.json` holds: both answers as `litelvlm serve` gives them, the setting, IoU and times."""
    job, pruned, unpruned = comparison.job, comparison.pruned, comparison.unpruned
    return {
        "model": comparison.model,
        "version": __version__,
        "setting": {name: value for name, value in job.pruning.to_dict().items() if name != "presets"},
        "iou_with_unpruned": comparison.ious,
        "pruned": {**describe(job, pruned), "timings_ms": pruned.times},
        "unpruned": {**describe(job, unpruned), "timings_ms": unpruned.times},
    }


def write_zip(comparison: Comparison, path: Path) -> None:
    """Write `result.json`, a PNG (0 or 255) of each mask, and the three drawings of the page."""
    pictures = {
        "pruned.png": draw_answer(comparison, comparison.pruned),
        "unpruned.png": draw_answer(comparison, comparison.unpruned),
        "kept_tokens.png": draw_kept(comparison),
    }
    for name, answer in (("pruned", comparison.pruned), ("unpruned", comparison.unpruned)):
        for index, mask in enumerate(answer.masks):
            pictures[f"masks/{name}_{index}.png"] = Image.fromarray(mask.astype(np.uint8) * 255)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("result.json", to_json(as_dict(comparison), indent=2), zipfile.ZIP_DEFLATED)
        for name, picture in pictures.items():
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            archive.writestr(name, stream.getvalue())
