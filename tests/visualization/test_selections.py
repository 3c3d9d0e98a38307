"""What a model kept, as a picture: the setting, the sentences in their colours, the scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput
from transformers_litelvlm.pruning import LayerPruner, list_pruners
from transformers_litelvlm.visualization import LONGEST_SIDE, draw_selections, mask_colour
from transformers_litelvlm.visualization.selections import SIMILARITIES


SENTENCES, SIDE = ["the red circle", "the star"], LONGEST_SIDE[0]


def output_of(similarity, retained, **fields):
    """Of one image of 64 x 64 pixels and two sentences, whose masks are empty."""
    masks = [torch.zeros(2, 64, 64, dtype=torch.bool)]
    return ReferringSegmentationOutput(masks=masks, similarity=similarity, retained_indices=retained, **fields)


def has(pixels, colour):
    return bool((pixels == colour).all(-1).any())


def framed(picture, top, colour):
    """Tokens of a 4 x 4 grid at the left of a picture, below `top`, that have a frame of a colour."""
    step = SIDE // 4
    cells = [(y, x) for y in range(4) for x in range(4)]
    return [
        y * 4 + x
        for y, x in cells
        if has(picture[top + y * step : top + y * step + step, x * step : x * step + step], colour)
    ]


@pytest.fixture
def similarity():
    return torch.arange(16.0).repeat(2, 1)[None] * torch.tensor([1.0, -1.0])[None, :, None]  # opposite orders


def test_each_kept_token_is_marked_by_the_sentence_that_chose_it(similarity):
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    setting = PruningConfig(method="litelvlm", method_options={"context_share": 0.5}, budget=8)
    # Two for each sentence, four of context.
    retained = torch.tensor([[0, 1, 15, 14, 6, 7, 8, 9]])
    [drawing] = draw_selections(
        image, output_of(similarity, retained, context_scores=torch.rand(1, 16)), setting, SENTENCES, (4, 4)
    )
    pixels = np.asarray(drawing)
    top = np.argwhere((pixels == mask_colour(0)).all(-1)).min(0)[0]  # the frame of token 0
    assert framed(pixels, top, mask_colour(0)) == [0, 1] and framed(pixels, top, mask_colour(1)) == [14, 15]
    assert pixels.shape[1] > 2 * SIDE and pixels.shape[0] > 2 * SIDE, "kept tokens and three maps, two in a row"


def test_a_dialogue_for_each_sentence_keeps_the_colours_of_the_sentences(similarity):
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    setting = PruningConfig(method="litelvlm", budget=2)
    output = output_of(similarity.transpose(0, 1), torch.tensor([[0, 1], [14, 15]]))
    drawings = [np.asarray(one) for one in draw_selections(image, output, setting, SENTENCES, (4, 4))]
    assert len(drawings) == 2
    for index, pixels in enumerate(drawings):
        assert has(pixels, mask_colour(index)) and not has(pixels, mask_colour(1 - index))


def test_methods_without_scores_and_without_pruning():
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    unpruned = draw_selections(image, output_of(None, None), PruningConfig(), SENTENCES, (4, 4))
    kept = output_of(None, torch.tensor([[0, 5]]))
    uniform = draw_selections(image, kept, PruningConfig(method="uniform", budget=2), SENTENCES, (4, 4))
    scored = output_of(None, torch.tensor([[0, 5]]), context_scores=torch.rand(1, 16))
    attention = draw_selections(image, scored, PruningConfig(method="cls_attention", budget=2), SENTENCES, (4, 4))
    widths = [len(made) == 1 and made[0].width for made in (unpruned, uniform, attention)]
    assert widths[0] == widths[1] == SIDE and widths[2] > 2 * SIDE


def test_what_a_colour_bar_shows_has_a_name_for_every_method():
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).eval()
    inputs = processor.segmentation_inputs(images=[generate_scene("test", 0).image], expressions=[SENTENCES])
    drawn = {}
    for name in sorted(set(list_pruners()) - {"none"}):
        pruner = PruningConfig(method=name).build_pruner()
        if isinstance(pruner, LayerPruner):
            drawn[name] = (None, pruner.context_name)
            continue
        output = model.segment(**inputs, pruning_config={"method": name, "budget": 48})
        kind = None if output.similarity is None else SIMILARITIES[pruner.similarity]
        drawn[name] = (kind, None if output.context_scores is None else pruner.context_name)
    assert drawn["litelvlm"] == ("dot product", "context score") and drawn["random"] == (None, None)
    assert drawn["cdpruner"] == ("cosine", "relevance") and drawn["vispruner"] == (None, "class attention")
    assert "score of the method" not in {name for _, name in drawn.values()}, "that is for methods of others"
