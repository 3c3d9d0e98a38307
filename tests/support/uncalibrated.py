"""The checkpoint in the package as it was before it was calibrated."""

import json
from pathlib import Path

from transformers_litelvlm.calibration.writing import BEGIN, END


def uncalibrate(folder: Path) -> Path:
    """Give a copy the published default and presets of ratios alone, and take the calibration out of its card."""
    settings = json.loads((folder / "config.json").read_text())
    settings["pruning_config"]["method_options"] = {}
    presets = settings["pruning_config"]["presets"]
    for name in ("fast", "balanced", "accurate"):
        presets[name] = {"budget": None, "retention_ratio": presets[name]["retention_ratio"]}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    card = folder / "README.md"
    if card.exists():
        before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
        card.write_text(before + rest.partition(END)[2], encoding="utf-8")
    return folder
