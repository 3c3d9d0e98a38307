"""A sweep gives the masks that the model gives alone, for every kind of method, in any order."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.samples import ReferringSentence
from transformers_litelvlm.evaluation import sweeping
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runs import plan_runs
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


METHODS = ["none", "litelvlm", "litelvlm:context_share=0.5,token_order=reference,position_ids=compact"]
METHODS += ["tome", "visionzip", "random"]


@pytest.fixture(scope="module")
def parts():
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).eval()
    return model, lambda: AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def sample():
    return load_split("refshapes", "test", num_scenes=3)[2]


def planned(tmp_path, **options):
    return plan_runs(EvaluationArguments(output_dir=str(tmp_path), budgets=[48], seeds=[3], **options))


@pytest.mark.parametrize("joint_dialogue", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_model_alone(parts, sample, tmp_path, method, joint_dialogue):
    model, make_processor = parts
    segmenter = SweepSegmenter(model, make_processor(), joint_dialogue=joint_dialogue)
    # Other runs before it leave nothing behind.
    *_, run = runs = planned(tmp_path, methods=[name for name in METHODS if name != method] + [method])
    shared = segmenter.encode(sample.load_image(), list(sample.sentences))
    outputs = [segmenter.segment(run, shared) for run in runs]

    processor = make_processor()
    processor.one_expression_per_dialogue = not joint_dialogue
    inputs = processor.segmentation_inputs([sample.load_image()], [[s.sentence for s in sample.sentences]])
    model.config.pruning_config = run.pruning(segmenter.base_pruning)
    try:
        expected = model.segment(**inputs)
    finally:
        model.config.pruning_config = segmenter.base_pruning
    assert (outputs[-1].masks == expected.masks[0]).float().mean() > 0.9999
    num_kept = 144 if expected.retained_indices is None else expected.retained_indices.shape[1]
    assert set(outputs[-1].cost.num_kept) == {num_kept} == {144 if method == "none" else 48}


def test_each_run_has_the_setting_it_names(tmp_path, parts):
    model, _ = parts
    runs = {run.run_id: run.pruning(model.config.pruning_config) for run in planned(tmp_path, methods=METHODS)}
    assert runs["none"].is_on is False
    released = runs[f"{METHODS[2]}@48"]
    assert released.method_options == {"context_share": 0.5}
    assert (released.token_order, released.position_ids) == ("reference", "compact")
    assert runs["random@48#3"].method_options == {"seed": 3}
    assert runs["litelvlm@48"].position_ids == model.config.pruning_config.position_ids == "original"


def test_many_sentences_are_asked_in_several_passes(parts, sample, tmp_path, monkeypatch):
    model, make_processor = parts
    segmenter = SweepSegmenter(model, make_processor())
    *_, run = planned(tmp_path, methods=["litelvlm"])
    sentences = list(sample.sentences)
    whole = segmenter.segment(run, segmenter.encode(sample.load_image(), sentences))
    monkeypatch.setattr(sweeping, "MAX_DIALOGUES", 2)
    shared = segmenter.encode(sample.load_image(), sentences)
    assert [len(part["input_ids"]) for part in shared.parts] == [2] * (len(sentences) // 2) + [1] * (
        len(sentences) % 2
    )
    parted = segmenter.segment(run, shared)
    assert parted.masks.shape == whole.masks.shape
    assert (parted.masks == whole.masks).float().mean() > 0.9999


def test_whole_sentences_keep_their_capitals_and_have_their_own_question(parts):
    model, make_processor = parts
    processor = make_processor()
    processor.question_templates = ["Find {expression}.", "{expression} Show it."]
    segmenter = SweepSegmenter(model, processor)
    image = Image.fromarray(np.zeros((144, 144, 3), np.uint8))

    def asked(**details):
        sentence = ReferringSentence("0", "The Red circle", load_mask=lambda: None, details=details)
        ids = segmenter.encode(image, [sentence]).parts[0]["input_ids"]
        return ids.tolist()

    def expected(template, as_written):
        inputs = processor.segmentation_inputs(
            [image], [["The Red circle"]], question_template=template, as_written=as_written
        )
        return inputs["input_ids"].tolist()

    assert asked() == expected("Find {expression}.", False)
    assert asked(is_sentence=True) == expected("{expression} Show it.", True)
    assert asked(is_sentence=False) == expected("Find {expression}.", True)
    assert len({str(ids) for ids in (asked(), asked(is_sentence=True), asked(is_sentence=False))}) == 3
