"""A CLIP beside a model with another tower: its maps on the grid of the visual tokens."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_qwen2_5_vl import prompt, random_media, tiny_clip, tiny_model
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.guidance.clip import ClipTowerEvidence, SideClip, SideClipEvidence
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.pruning.scoring import context_scores, similarity_scores


@pytest.fixture(scope="module")
def clip():
    whole = tiny_clip()
    side = SideClip(whole.config)
    side.load_state_dict({name: value for name, value in whole.state_dict().items() if name != "logit_scale"})
    return side.eval()


def inputs(count):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 500, (count, 2, 6), generator=generator)
    ids[..., 0], ids[..., -1] = 512, 513
    return torch.randn(count, 3, 32, 32, generator=generator), ids, torch.ones_like(ids)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (2, 2), (9, 1)])
def test_maps_are_resampled_to_the_grid(clip, grid):
    pixels, ids, mask = inputs(2)
    tokens = torch.zeros(2, grid[0] * grid[1], 5)
    evidence = SideClipEvidence(clip, clip.encode_pictures(pixels), tokens, grid, Guidance(ids, mask))
    # CLIP's own maps on its 4 x 4 patches, from what its last layer of three reads.
    own = ClipTowerEvidence(TowerStates.of(clip.vision_model, pixels, 2), clip, None, Guidance(ids, mask))
    text, is_real = own.text_embeds()
    similarity = similarity_scores(own.image_embeds(), text)
    context = context_scores(*own.class_attention())

    def on_grid(maps):
        # torch's own, from the memory layout in which it is right also where a map becomes one column wide.
        maps = maps.unflatten(-1, (4, 4)).repeat_interleave(2, dim=1).contiguous(memory_format=torch.channels_last)
        return F.interpolate(maps, grid, mode="bilinear", antialias=True)[:, ::2].flatten(-2)

    assert is_real.all() and torch.equal(evidence.text_embeds()[0], text)
    torch.testing.assert_close(
        similarity_scores(evidence.image_embeds(), text), on_grid(similarity), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(evidence.context_scores(), on_grid(context.unsqueeze(1)).squeeze(1))
    query, keys, values = evidence.class_attention()
    assert query.shape == (2, 28) and keys.shape == values.shape == (2, grid[0] * grid[1], 28)
    if grid == (4, 4):  # nothing to resample
        torch.testing.assert_close(evidence.image_embeds(), own.image_embeds())


def test_tokens_are_ranked_by_the_resampled_maps(clip):
    model = tiny_model(guidance="clip", guidance_config=tiny_clip().config)
    model.model.guidance = clip
    pixels, grid_thw = random_media([(1, 4, 6), (1, 2, 3), (1, 4, 6)])
    pictures, ids, mask = inputs(3)
    model.config.pruning_config = PruningConfig(budget=4, token_order="reference")
    rows = [[9, ("image", 24), 10], [9, ("image", 6), 10], [9, ("image", 24), 10]]
    output = model(
        **prompt(*rows),
        pixel_values=pixels,
        image_grid_thw=grid_thw,
        guidance_pixel_values=pictures,
        guidance_input_ids=ids,
        guidance_attention_mask=mask,
    )
    for image, (height, width) in enumerate([(4, 6), (2, 3), (4, 6)]):
        evidence = SideClipEvidence(
            clip,
            clip.encode_pictures(pictures[image : image + 1]),
            torch.zeros(1, height * width, 5),
            (height, width),
            Guidance(ids[image : image + 1], mask[image : image + 1]),
        )
        scores = similarity_scores(evidence.image_embeds(), evidence.text_embeds()[0])[0]
        least = {index for row in scores for index in row.argsort(stable=True)[:2].tolist()}
        assert least <= set(output.retained_indices[image].tolist())
