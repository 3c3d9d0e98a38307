"""Pictures of one colour with a region of another, and weights by which tiny models of Qwen's tell the colours apart.

Only means over whole pictures of one colour go into the weights: they know nothing of places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from tests.support.tiny_qwen2_5_vl import MERGE, PATCH
from transformers_litelvlm.models.guidance.clip import ClipTowerEvidence, SideClip
from transformers_litelvlm.models.guidance.encoded import Guidance


PLAIN, PLANTED = (128, 128, 128), (220, 60, 40)
SIDE = MERGE * PATCH  # pixels of a visual token


@dataclass(frozen=True)
class Planted:
    """A picture of `grid` rows and columns of visual tokens, in which those from `first` to before `end` are planted.

    All places are (row, column).
    """

    grid: tuple[int, int]
    first: tuple[int, int] = (0, 0)
    end: tuple[int, int] = (0, 0)

    @property
    def mask(self) -> torch.Tensor:
        """(h, w) bool: the planted visual tokens."""
        mask = torch.zeros(self.grid, dtype=torch.bool)
        mask[self.first[0] : self.end[0], self.first[1] : self.end[1]] = True
        return mask

    def picture(self) -> Image.Image:
        places = [(SIDE * column, SIDE * row) for row, column in (self.grid, self.first, self.end)]
        picture = Image.new("RGB", places[0], PLAIN)
        picture.paste(PLANTED, (*places[1], *places[2]))
        return picture


def auroc(scores: torch.Tensor, mask: torch.Tensor) -> float:
    """How often a score (N,) in the mask (h, w) is above one outside it."""
    inside, outside = scores[mask.flatten()].unsqueeze(1), scores[~mask.flatten()]
    return float(((inside > outside).float() + 0.5 * (inside == outside)).mean())


def of_one_colour(grid: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """All planted, and nothing."""
    return Planted(grid, end=grid).picture(), Planted(grid).picture()


@torch.no_grad()
def plant_query(visual: Any, block: int, image_processor: Any, grid: tuple[int, int]) -> None:
    """Every patch in a block of a tower asks for what the keys of the planted colour have, and the plain ones lack."""
    qkv, keys = visual.blocks[block].attn.qkv, []
    handle = qkv.register_forward_hook(lambda module, args, output: keys.append(output.chunk(3, dim=-1)[1].mean(0)))
    for picture in of_one_colour(grid):
        media = image_processor(picture, return_tensors="pt")
        visual(media["pixel_values"], grid_thw=media["image_grid_thw"])
    handle.remove()
    queries = slice(0, qkv.in_features)
    qkv.weight[queries], qkv.bias[queries] = 0.0, keys[0] - keys[1]


@torch.no_grad()
def plant_word(model: Any, token: int, image_processor: Any, grid: tuple[int, int]) -> None:
    """A token means what visual tokens of the planted colour have, and the plain ones lack."""
    tokens = []
    for picture in of_one_colour(grid):
        media = image_processor(picture, return_tensors="pt")
        tokens.append(model.visual(media["pixel_values"], grid_thw=media["image_grid_thw"]).pooler_output.mean(0))
    model.get_input_embeddings().weight[token] = tokens[0] - tokens[1]


@torch.no_grad()
def plant_texts(clip: SideClip, sentence: torch.Tensor, image_processor: Any) -> None:
    """For a CLIP, a sentence (L,) means the planted colour, and the text without words the plain one."""
    pictures = image_processor(list(of_one_colour((2, 2))), return_tensors="pt")["pixel_values"]
    evidence = ClipTowerEvidence(clip.encode_pictures(pictures), clip, None, Guidance(sentence.expand(2, 1, -1)))
    meanings = evidence.surgery_embeds()[0].mean(dim=1)  # (2, P)
    empty = clip.text_model(input_ids=sentence[[0, -1]].unsqueeze(0)).pooler_output
    states = torch.cat((clip.text_model(input_ids=sentence.unsqueeze(0)).pooler_output, empty))  # (2, C)
    clip.text_projection.weight.copy_(meanings.mT @ torch.linalg.pinv(states.mT))
