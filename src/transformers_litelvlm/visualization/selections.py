"""What a model kept of an image, beside the scores by which it chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.utils.image_io import ImageInput
from transformers_litelvlm.visualization.colours import GREY, mask_colour
from transformers_litelvlm.visualization.layout import LegendEntry, side_by_side, to_array
from transformers_litelvlm.visualization.scores import draw_scores
from transformers_litelvlm.visualization.tiles import kept_on_picture, on_picture
from transformers_litelvlm.visualization.tokens import Region, draw_retained_tokens


if TYPE_CHECKING:
    from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput


# What the numbers at the colour bar are, by the option `similarity` of `litelvlm`; others have a class variable.
SIMILARITIES = {"dot": "dot product", "cosine": "cosine", "surgery": "CLIP Surgery"}


def draw_selections(
    image: ImageInput,
    output: ReferringSegmentationOutput,
    pruning: PruningConfig,
    sentences: Sequence[str],
    grid: tuple[int, int],
    region: Region | None = None,
    places: np.ndarray | None = None,
) -> list[Image.Image]:
    """
    Draws what was kept of one image, with the method and the budget, and the scores if the method has some.

    Args:
        image: As in [`draw_masks`].
        output (`ReferringSegmentationOutput`): Of `segment`, for this image alone.
        pruning (`PruningConfig`): What `output` was made with, such as `model.config.pruning_config`.
        sentences (`Sequence[str]`): What was asked.
        grid (`tuple[int, int]`): (rows, columns) of visual tokens.
        region (`tuple[float, float, float, float]`, *optional*): What the vision tower saw, (left, top, right, bottom)
            in pixels of the image, see [`seen_region`]. Defaults to the whole image.
        places (`np.ndarray`, *optional*): The place of each visual token in the grid, -1 for none, where they are not
            in its order: of images in tiles, see `processor.grid_on_picture`. Then it is not shown which sentence
            chose a token: that was decided in each tile.

    Returns:
        `list[PIL.Image.Image]`: One drawing for each dialogue: usually there is one about all sentences.
    """
    masks = to_array(output.masks[0])
    total = grid[0] * grid[1] if places is None else len(places)
    if output.retained_indices is None:
        picture = draw_retained_tokens(image, None, grid, region, masks, None, sentences)
        return [side_by_side([picture], f"unpruned, all {total} visual tokens")]
    drawings, pruner = [], pruning.build_pruner()
    kind = SIMILARITIES.get(getattr(pruner, "similarity", ""))
    name = "similarity" if kind is None else f"similarity ({kind})"
    count = len(output.retained_indices)
    for row in range(count):
        asked = range(len(sentences)) if count == 1 else [row]  # a dialogue about all, or one for each
        indices, similarity = to_array(output.retained_indices[row]), _row(output.similarity, row)
        kept = kept_on_picture(indices, places)
        shown = [mask & (index in asked) for index, mask in enumerate(masks)]
        labels = [sentence if index in asked else None for index, sentence in enumerate(sentences)]
        chosen = _chosen_by(pruning, output, row, asked, total) if places is None else None
        weights = None if output.merge_weights is None else on_picture(output.merge_weights[row], grid, places)
        pictures = [draw_retained_tokens(image, kept, grid, region, shown, weights, labels, chosen)]
        for index, scores in zip(asked, [] if similarity is None else similarity):
            label = LegendEntry(mask_colour(index), f"{index}  {name} with “{sentences[index]}”", "framed: kept")
            scores = on_picture(scores, grid, places)
            pictures.append(draw_scores(image, scores, grid, region, kept, shown[index], label))
        if (context := _row(output.context_scores, row)) is not None:
            label = LegendEntry(GREY, pruner.context_name, "framed: kept")
            context = on_picture(context, grid, places)
            pictures.append(draw_scores(image, context, grid, region, kept, None, label))
        title = f"{_describe(pruning)}, {len(indices)} of {total} visual tokens"
        if len(indices) > len(kept):
            title += f", {len(indices) - len(kept)} of them in the thumbnail"
        drawings.append(side_by_side(pictures, title, columns=2 if len(pictures) == 4 else 3))
    return drawings


def _row(scores: Any, row: int) -> np.ndarray | None:
    """The scores of a dialogue; `None` where there are none, or none that could be drawn."""
    if scores is None or scores[row] is None:
        return None
    values = to_array(scores[row])
    return values if np.isfinite(values).all() else None


def _chosen_by(
    pruning: PruningConfig, output: ReferringSegmentationOutput, row: int, asked: Sequence[int], total: int
) -> np.ndarray | None:
    """Which tokens each of all sentences chose, bool (sentences, tokens), none for those of other dialogues."""
    budget = pruning.resolve(total)
    if output.similarity is None or budget is None:
        return None
    similarity = output.similarity[row][None, : len(asked)]
    is_real = similarity.new_ones(similarity.shape[:2]).bool()
    of_asked = pruning.build_pruner().chosen_by(similarity, is_real, budget)
    if of_asked is None:
        return None
    chosen = np.zeros((len(output.masks[0]), total), dtype=bool)
    chosen[list(asked)] = to_array(of_asked[0])
    return chosen


def _describe(pruning: PruningConfig) -> str:
    options = ", ".join(f"{name}={value}" for name, value in (pruning.method_options or {}).items())
    return pruning.method + (f" ({options})" if options else "") + (" and then another" if pruning.then else "")
