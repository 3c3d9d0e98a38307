"""Pictures for people: masks over the image, which visual tokens were kept and why, quality against tokens.

All are opaque on white, as a page in dark mode shows them, or a chat, or a slide: on a transparent ground, text and
grey lines would be lost on one of the two.
"""

from transformers_litelvlm.visualization.colours import mask_colour
from transformers_litelvlm.visualization.layout import LONGEST_SIDE, side_by_side
from transformers_litelvlm.visualization.masks import draw_masks
from transformers_litelvlm.visualization.scores import draw_scores
from transformers_litelvlm.visualization.selections import draw_selections
from transformers_litelvlm.visualization.tokens import draw_retained_tokens, region_of, seen_region


__all__ = [
    "LONGEST_SIDE",
    "draw_masks",
    "draw_retained_tokens",
    "draw_scores",
    "draw_selections",
    "mask_colour",
    "region_of",
    "seen_region",
    "side_by_side",
]
