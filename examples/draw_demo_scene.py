"""Draws the scene of `make demo` and the known masks of its sentences, from the generator of RefShapes.

python examples/draw_demo_scene.py --index 5 --expressions 0 3 --output_dir examples/assets
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from transformers_litelvlm.data import generate_scene


def main() -> None:
    """Writes `demo.png` and one `demo_mask_<i>.png` per sentence, and prints the sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=int, required=True, help="scene of the test split")
    parser.add_argument("--expressions", type=int, nargs="+", required=True, help="which of its sentences")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    scene = generate_scene("test", args.index)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(args.output_dir / "demo.png")
    for number, place in enumerate(args.expressions):
        expression = scene.expressions[place]
        mask = scene.mask(expression.target_id)
        Image.fromarray(mask.astype("uint8") * 255).save(args.output_dir / f"demo_mask_{number}.png")
        print(expression.sentence)


if __name__ == "__main__":
    main()
