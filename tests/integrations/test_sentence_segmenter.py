"""Masks of sentences for annotation tools: those of the model, upright, without empty ones."""

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_qwen3_vl import QWEN3_VL
from tests.support.tool_pictures import PICTURE, SENTENCES
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.integrations.sentence_segmenter import SentenceSegmenter, found_masks


@pytest.fixture(scope="module")
def segment():
    return SentenceSegmenter()


def test_masks_are_those_of_the_model(segment, bundled):
    model, processor = bundled
    output = model.segment(**processor.segmentation_inputs([PICTURE], [SENTENCES]))
    found = segment(PICTURE, SENTENCES)
    assert [each.sentence for each in found] == SENTENCES and [each.number for each in found] == [0, 1, 2]
    for each, mask, score in zip(found, output.masks[0].numpy(), output.scores[0].tolist(), strict=True):
        np.testing.assert_array_equal(each.mask, mask)
        assert each.score == score
        left, top, right, bottom = each.box
        assert mask.sum() == mask[top:bottom, left:right].sum()
        assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()


def test_settings_reach_the_model():
    segment = SentenceSegmenter(method="random", budget=7)
    pruning = segment.model.config.pruning_config
    assert (pruning.method, pruning.budget, pruning.retention_ratio) == ("random", 7, None)
    assert SentenceSegmenter(preset="fast").model.config.pruning_config.retention_ratio == 1 / 9
    assert SentenceSegmenter().model.config.pruning_config.retention_ratio == 2 / 9
    assert SentenceSegmenter(DEFAULT_CHECKPOINT).model.config.pruning_config.retention_ratio is None
    with pytest.raises(ValueError, match="randm"):
        SentenceSegmenter(method="randm")


def test_a_checkpoint_without_masks_is_named(tmp_path):
    QWEN3_VL.save_stock_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="writes no masks: its config has no `mask_config`"):
        SentenceSegmenter(str(tmp_path), budget=7)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_pictures_that_lie_on_their_side(segment, tmp_path, mode):
    """A mask has the size of what a viewer shows."""
    wide = PICTURE.resize((200, 240)).transpose(Image.Transpose.ROTATE_90).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "lying.png", exif=exif)
    with Image.open(tmp_path / "lying.png") as lying:
        found = segment(lying, SENTENCES)
    assert found and {each.mask.shape for each in found} == {(240, 200)}


def test_empty_masks_and_low_scores_are_left_out(segment):
    masks = np.zeros((3, 4, 6), dtype=bool)
    masks[1, 2:4, 1:3] = True
    [found] = found_masks(masks, [0.0, 0.75, 0.0], ["a", "b", "c"])
    assert (found.number, found.sentence, found.score, found.box) == (1, "b", 0.75, (1, 2, 3, 4))
    with pytest.raises(ValueError, match="3 masks and 2 sentences"):
        found_masks(masks, [0, 0, 0], ["a", "b"])
    scores = sorted(each.score for each in segment(PICTURE, SENTENCES))
    assert len(segment(PICTURE, SENTENCES, scores[1])) == 2 and not segment(PICTURE, SENTENCES, 1.0)
