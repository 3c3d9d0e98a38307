"""`Detections` of Supervision have the masks of the model, and its annotators draw them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tool_pictures import PICTURE, SENTENCES
from transformers_litelvlm.data import encode_mask
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput


sv = pytest.importorskip("supervision")
from transformers_litelvlm.integrations.supervision import to_detections  # noqa: E402


@pytest.fixture(scope="module")
def output(bundled):
    model, processor = bundled
    return model.segment(**processor.segmentation_inputs([PICTURE, PICTURE], [SENTENCES[:1], SENTENCES]))


def test_detections_are_our_masks(output):
    found = to_detections(output, SENTENCES, image=1)
    np.testing.assert_array_equal(found.mask, output.masks[1].numpy())
    np.testing.assert_array_equal(found.xyxy, sv.mask_to_xyxy(found.mask, "exclusive"))
    np.testing.assert_array_equal(found.confidence, output.scores[1].numpy())
    assert found["class_name"].tolist() == SENTENCES and found.class_id.tolist() == [0, 1, 2]
    drawn = sv.MaskAnnotator(opacity=1.0, color=sv.Color.WHITE).annotate(np.zeros_like(np.asarray(PICTURE)), found)
    np.testing.assert_array_equal(drawn.any(axis=2), found.mask.any(axis=0))


def test_an_answer_of_the_server(output):
    masks, scores = output.masks[1].numpy(), output.scores[1].tolist()
    each = zip(SENTENCES, masks, scores, strict=True)
    answer = {"masks": [{"sentence": name, "mask": encode_mask(mask), "score": score} for name, mask, score in each]}
    assert to_detections(answer) == to_detections(output, SENTENCES, image=1)


def test_empty_masks_are_left_out():
    masks = torch.zeros(3, 5, 8, dtype=torch.bool)
    masks[2, 1:3, 4:6] = True
    output = ReferringSegmentationOutput(masks=[masks], scores=[torch.tensor([0, 0, 0.5])])
    found = to_detections(output, ["a", "b", "c"])
    assert (found.class_id.tolist(), found["class_name"].tolist(), found.xyxy.tolist()) == ([2], ["c"], [[4, 1, 6, 3]])
    none = to_detections(ReferringSegmentationOutput(masks=[masks[:2]], scores=[torch.zeros(2)]), ["a", "b"])
    assert len(none) == 0 and none.mask.shape == (0, 5, 8)
    with pytest.raises(ValueError, match="3 masks and 0 sentences"):
        to_detections(output)


def test_the_block_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "annotation_tools.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(block, names)
    assert len(names["detections"]) == 2 and (names["drawn"] != names["scene"].image).any()
