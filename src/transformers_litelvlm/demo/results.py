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


QUICK = 1  # compression of drawings: files are a little larger, and written in a fraction of the time


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


def write_results(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write the drawings of the page, and an archive of them, of `result.json` and of a PNG (0 or 255) of each mask;
    returns the files by name: `pruned`, `unpruned`, `kept` and `archive`."""
    files = {name: folder / f"{name}.png" for name in ("pruned", "unpruned", "kept")}
    draw_answer(comparison, comparison.pruned).save(files["pruned"], compress_level=QUICK)
    draw_answer(comparison, comparison.unpruned).save(files["unpruned"], compress_level=QUICK)
    draw_kept(comparison).save(files["kept"], compress_level=QUICK)
    archive_path = folder / "litelvlm_masks.zip"
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr("result.json", to_json(as_dict(comparison), indent=2), zipfile.ZIP_DEFLATED)
        for path in files.values():
            archive.write(path, path.name)
        for name, answer in (("pruned", comparison.pruned), ("unpruned", comparison.unpruned)):
            for index, mask in enumerate(answer.masks):
                stream = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
                archive.writestr(f"masks/{name}_{index}.png", stream.getvalue())
    return {**files, "archive": archive_path}
