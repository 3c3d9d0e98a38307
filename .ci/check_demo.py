"""Check what `make demo` wrote: pictures for people, and one mask per sentence that fits the known one."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


LOWEST_IOU = 0.8


def read_mask(path: Path) -> np.ndarray:
    """Read a PNG as a boolean (height, width) array."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


def check_demo(output_dir: Path, assets_dir: Path, count: int | None = None) -> list[str]:
    """Return one line per fault; an empty list when the demo's outputs for the first `count` sentences are right."""
    with Image.open(assets_dir / "demo.png") as image:
        size = image.size
    expected_paths = sorted(assets_dir.glob("demo_mask_*.png"))[:count]
    if not expected_paths:
        return [f"no demo_mask_*.png in {assets_dir}: nothing to compare with"]

    faults = [
        f"{output_dir / name} is missing or empty"
        for name in ("overlay.png", "kept_tokens.png")
        if not (output_dir / name).is_file() or not np.asarray(Image.open(output_dir / name)).any()
    ]
    for index, expected_path in enumerate(expected_paths):
        found = sorted(output_dir.glob(f"mask_{index}[_.]*png"))
        if len(found) != 1:
            faults.append(f"expected one mask_{index}_*.png in {output_dir}, found {[path.name for path in found]}")
            continue
        mask, expected = read_mask(found[0]), read_mask(expected_path)
        if mask.shape != size[::-1]:
            faults.append(
                f"{found[0]}: {mask.shape[1]} x {mask.shape[0]} pixels, the picture has {size[0]} x {size[1]}"
            )
            continue
        if not mask.any():
            faults.append(f"{found[0]}: the mask is empty")
            continue
        iou = (mask & expected).sum() / (mask | expected).sum()
        sys.stdout.write(f"{found[0].name}: IoU {iou:.3f} with {expected_path.name}\n")
        if iou < LOWEST_IOU:
            faults.append(f"{found[0]}: IoU {iou:.3f} with {expected_path.name} is below {LOWEST_IOU}")
    return faults


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: check_demo.py OUTPUT_DIR ASSETS_DIR [NUMBER_OF_SENTENCES]")
    problems = check_demo(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
    if problems:
        sys.exit("\n".join(problems))
