"""Draws the picture of README.md: an image, the masks from all visual tokens, and those from a third of them.

python examples/draw_readme_picture.py --output docs/images/demo_unpruned_and_pruned.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.visualization import mask_colour, side_by_side
from transformers_litelvlm.visualization.colours import INK, PALETTE, PRUNED, WHITE
from transformers_litelvlm.visualization.layout import LegendEntry, canvas_of, with_legend
from transformers_litelvlm.visualization.masks import paint_masks
from transformers_litelvlm.visualization.tokens import cells_of, paint_tokens


SENTENCES = ["the dotted triangle right of the red triangle", "the red triangle"]
PANEL = 480  # pixels, for a page that shows three of them at half that size


def main() -> None:
    """Runs the checkpoint in the package without and with pruning, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=Path("examples/assets/demo.png"))
    parser.add_argument("--sentences", nargs="+", default=SENTENCES)
    parser.add_argument("--preset", default="accurate", help="of the checkpoint in the package")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    with Image.open(args.image) as opened:
        image = opened.convert("RGB")
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT, pruning_preset=args.preset).eval()
    inputs = processor.segmentation_inputs(images=[image], expressions=[args.sentences], return_tensors="pt")
    pruning = model.config.pruning_config
    with torch.inference_mode():
        pruned = model.segment(**inputs)
        unpruned = model.segment(**inputs, pruning_config=pruning.replace(budget=None, retention_ratio=None))
    _, rows, columns = processor.visual_token_grids(inputs)[0]
    picture = draw(image, args.sentences, unpruned, pruned, (rows, columns))
    save_small(picture, args.output)
    print(f"{args.output}: IoU of pruned and unpruned masks {agreement(unpruned, pruned)}")


def draw(image: Image.Image, sentences: list[str], unpruned: Any, pruned: Any, grid: tuple[int, int]) -> Image.Image:
    """The three panels over the sentences in their colours. The image must be square: the model sees all of it."""
    total, kept = grid[0] * grid[1], pruned.retained_indices[0].tolist()
    plain, full, third = canvas_of(image), canvas_of(image), canvas_of(image)
    paint_masks(full, list(unpruned.masks[0].numpy()))
    cell = cells_of(third.size, image.size, grid, (0.0, 0.0, float(image.width), float(image.height)))
    third.paste(paint_tokens(np.asarray(third), cell, np.isin(np.arange(total), kept).astype(float)))
    paint_masks(third, list(pruned.masks[0].numpy()))
    panels = [
        side_by_side([panel.resize((PANEL, PANEL), Image.Resampling.LANCZOS)], title)
        for panel, title in (
            (plain, "image"),
            (full, f"masks from all {total} visual tokens"),
            (third, f"masks from {len(kept)} of {total}"),
        )
    ]
    entries = [LegendEntry(mask_colour(index), f"{index}  “{text}”") for index, text in enumerate(sentences)]
    return with_legend(
        side_by_side(panels), [*entries, LegendEntry(PRUNED, "visual tokens that the language model does not read")]
    )


def save_small(picture: Image.Image, path: Path) -> None:
    """A PNG with a palette, which a page loads at once; the colours of the masks stay what they are."""
    few = picture.quantize(160, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours = [channel for colour in (*PALETTE, PRUNED, INK, WHITE) for channel in colour]
    palette = Image.new("P", (1, 1))
    palette.putpalette(few.getpalette() + colours)
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def agreement(unpruned: Any, pruned: Any) -> str:
    """IoU of the masks of each sentence."""
    first, second = unpruned.masks[0], pruned.masks[0]
    ious = (first & second).flatten(1).sum(-1) / (first | second).flatten(1).sum(-1)
    return ", ".join(f"{float(iou):.2f}" for iou in ious)


if __name__ == "__main__":
    main()
