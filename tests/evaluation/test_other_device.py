"""An evaluation on a device that is not the CPU gives the records of the CPU."""

import pytest
from transformers import AutoProcessor

from tests.support.matrix import matrix
from tests.support.second_device import DEVICE, other_device
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.measuring import measure_image
from transformers_litelvlm.evaluation.runs import plan_runs
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


METHODS = ["none", "litelvlm:context_share=0.5,token_order=reference", "tome", "random", "fastv:layer=1"]


@pytest.mark.parametrize("protocol", matrix(["all", "glamm"], "all".__eq__))
def test_records(tmp_path, protocol):
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).eval()
    options = {"budgets": [48], "seeds": [3], "methods": METHODS, "protocol": protocol}
    runs = plan_runs(EvaluationArguments(output_dir=str(tmp_path), **options))
    sample = load_split("refshapes", "test", num_scenes=3)[2]

    def records():
        segmenter = SweepSegmenter(
            model, AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT), joint_dialogue=protocol == "glamm"
        )
        return measure_image(2, sample, segmenter, runs, protocol).rows

    expected = records()
    with other_device():
        model.to(DEVICE)
        assert model.device == DEVICE
        actual = records()
    assert len(actual) == len(expected) >= len(METHODS)
    for ours, theirs in zip(actual, expected):
        assert ours[:4] == theirs[:4] and ours[-1] == theirs[-1]
        assert ours[4:7] == pytest.approx(theirs[4:7], rel=0.01, abs=2)  # a pixel at an edge may turn
