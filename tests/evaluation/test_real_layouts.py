"""Public sets in their own layouts, from reader to record. What the embedded checkpoint draws on photos is noise."""

import numpy as np
import pytest
from transformers import AutoProcessor

from tests.support.original_checkpoints import SHARED
from tests.support.small_evaluations import options, records, results
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


DATA = SHARED / "data"
SETS = {
    "refcoco": ("val", DATA / "hf" / "refcoco_benchmark_schema.parquet"),
    "refcoco-m": ("validation", DATA / "hf" / "refcoco_m_schema.parquet"),
    "reasonseg": ("val", DATA / "reason_seg"),
}
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the miniature data sets are not there")


@pytest.mark.parametrize("name", SETS)
def test_records_are_what_the_masks_say(name, tmp_path):
    split, source = SETS[name]
    evaluate(options(tmp_path, dataset=name, split=split, source=str(source), methods=["none"], max_images=4))
    table = records(tmp_path).to_pandas().set_index("expression_id")
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).eval()
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    num_ignored = num_sentences = 0
    for _, sample in zip(range(4), load_split(name, split, source), strict=False):
        for sentence in sample.sentences:
            as_written = "is_sentence" in sentence.details
            inputs = processor.segmentation_inputs([sample.load_image()], [[sentence.sentence]], as_written=as_written)
            mask, target = model.segment(**inputs).masks[0][0].numpy(), sentence.mask
            counted = np.ones_like(target) if sentence.ignore is None else ~sentence.ignore
            row = table.loc[sentence.sentence_id]
            # A sentence alone is another batch: single pixels at the edge may differ.
            assert row["intersection"] == pytest.approx((mask & target & counted).sum(), abs=3)
            assert row["union"] == pytest.approx(((mask | target) & counted).sum(), abs=3)
            num_ignored += int((~counted).sum())
            num_sentences += 1
    assert len(table) == num_sentences > 0
    assert (num_ignored > 0) == (name == "reasonseg")
    assert results(tmp_path)["dataset"]["counts_match"] is False


def test_videos_are_refused_by_a_model_of_images(tmp_path):
    with pytest.raises(ValueError, match="holds videos, and the model writes masks of images only"):
        evaluate(options(tmp_path, dataset="ref-davis17", split="valid", source=str(DATA / "rvos"), methods=["none"]))
