"""Small calibrations of the embedded checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.support.uncalibrated import uncalibrate
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.calibration.arguments import CalibrationArguments


FILES = ("calibration.json", "calibration.md")


def options(folder: Path, checkpoint: Path, **changes: Any) -> CalibrationArguments:
    """Two rounds, of two and four scenes. So few can only tell something apart if little confidence is asked for."""
    defaults: dict[str, Any] = {
        "methods": ["litelvlm:context_share=1.0"],
        "budgets": [16, 32, 48],
        "layouts": ["checkpoint"],
        "seeds": [0],
        "first_images": 2,
        "max_images": 4,
        "test_images": 1,
        "batch_size": 1,
        "confidence": 0.5,
        "sampling_seed": 0,
    }
    return CalibrationArguments(output_dir=str(folder), model=str(checkpoint), **{**defaults, **changes})


def copy_checkpoint(folder: Path) -> Path:
    return uncalibrate(Path(shutil.copytree(DEFAULT_CHECKPOINT, folder / "refshapes_tiny")))


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "calibration.json").read_text())


def files(folder: Path) -> list[bytes]:
    """What two calibrations with the same options have in common, byte for byte."""
    return [(folder / name).read_bytes() for name in FILES]
