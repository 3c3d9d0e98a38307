"""What the page shows of a comparison as pictures, and the scenes that it offers as examples."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.demo.comparing import Comparison
from transformers_litelvlm.serving.segmenter import Answer
from transformers_litelvlm.visualization import draw_masks, draw_retained_tokens, side_by_side
from transformers_litelvlm.visualization.tiles import kept_on_picture


# Scenes of the test split, which the bundled checkpoint was not trained on, and how many of their sentences.
EXAMPLES = ((0, 2), (3, 2), (5, 3), (8, 1))
WARM_UP = 1


def draw_answer(comparison: Comparison, answer: Answer) -> Image.Image:
    """The masks of one of the two answers over the picture."""
    return draw_masks(comparison.picture, answer.masks, comparison.job.sentences, answer.scores)


def draw_kept(comparison: Comparison) -> Image.Image:
    """The kept tokens over the picture, with the contours of the masks; one drawing for each dialogue."""
    answer, places = comparison.pruned, comparison.places
    shown = (comparison.grid, comparison.region, answer.masks, None, comparison.job.sentences)
    drawings = [draw_retained_tokens(comparison.picture, kept_on_picture(k, places), *shown) for k in answer.kept]
    return drawings[0] if len(drawings) == 1 else side_by_side(drawings, columns=2)


def write_scene(index: int, folder: Path) -> tuple[str, list[str]]:
    """Draw a scene of RefShapes into a folder: the path of its picture, and sentences about it."""
    scene, path = generate_scene("test", index), folder / f"scene_{index}.png"
    Image.fromarray(scene.image).save(path)
    return str(path), [expression.sentence for expression in scene.expressions]


def write_examples(folder: Path) -> list[list[str]]:
    """The path of each example, and its sentences, one a line."""
    written = [(*write_scene(index, folder), count) for index, count in EXAMPLES]
    return [[path, "\n".join(sentences[:count])] for path, sentences, count in written]
