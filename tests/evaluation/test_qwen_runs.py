"""Whole evaluations of a tiny UniPixel on images: what comes out, what it does not depend on, what is shared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.support.small_evaluations import records, results
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.metrics import score_masks
from transformers_litelvlm.evaluation.report import _tokens
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.evaluation.runs import plan_runs
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


SIZES = [(40, 56), (64, 30), (48, 48)]
SENTENCES = [["The red mug.", "a cat", "dog on the left"], ["Sky"], ["one", "two"]]
METHODS = ["none", "litelvlm:context_share=0.5", "random", "divprune", "fastv:layer=1"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for place, ((height, width), sentences) in enumerate(zip(SIZES, SENTENCES, strict=True)):
        noise = np.random.default_rng(place).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{place}.png")
        mask = np.zeros((height, width), bool)
        mask[5:25, 5:20] = True
        expressions = [{"text": sentence, "mask": encode_mask(mask)} for sentence in sentences]
        lines.append(json.dumps({"image": str(folder / f"{place}.png"), "expressions": expressions}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def options(folder, unipixel, rows, **changes) -> EvaluationArguments:
    defaults = {"methods": METHODS, "budgets": [20, 0.25], "seeds": [0, 1], "batch_size": 1}
    data = {"dataset": "rows", "split": "all", "source": str(rows)}
    return EvaluationArguments(output_dir=str(folder), model=str(unipixel), **data, **{**defaults, **changes})


@pytest.fixture(scope="module")
def swept(tmp_path_factory, unipixel, rows) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "results"
    evaluate(options(folder, unipixel, rows))
    return folder


@torch.no_grad()
def test_records_are_those_of_segment(swept, unipixel, rows):
    args = options(swept, unipixel, rows)
    model = AutoModelForReferringSegmentation.from_pretrained(unipixel, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(unipixel)
    base = model.config.pruning_config
    table = records(swept).to_pandas()
    runs = plan_runs(args)
    assert len(table) == len(runs) * 6 and len(runs) == 1 + 2 + 4 + 2 + 2
    for sample in load_split("rows", "all", rows):
        inputs = processor.segmentation_inputs([sample.load_image()], [[s.sentence for s in sample.sentences]])
        targets = torch.from_numpy(np.stack([sentence.mask for sentence in sample.sentences]))
        for run in runs:
            model.config.pruning_config = run.pruning(base)
            scores = score_masks(model.segment(**inputs).masks[0], targets)
            found = table[(table["run_id"] == run.run_id) & (table["image_id"] == sample.image_id)]
            assert found["intersection"].tolist() == [score.intersection for score in scores], run.run_id
            assert found["union"].tolist() == [score.union for score in scores]
    sums = table.groupby("run_id")["intersection"].sum()
    assert sums["none"] != sums["litelvlm:context_share=0.5@20"] != sums["random@20#0"] != sums["random@20#1"]


def test_what_the_results_say(swept):
    content = results(swept)
    assert content["model"]["family"] == "qwen2_5_vl_lite" and content["model"]["num_visual_tokens"] is None
    kept = {run["run_id"]: run["num_kept_mean"] for run in content["runs"]}
    assert kept["divprune@20"] == kept["fastv:layer=1@20"] == 20 and kept["none"] >= 128
    assert kept["divprune@0.25"] == pytest.approx(kept["none"] / 4, abs=0.5)
    assert content["dataset"]["kind"] == "images" and content["dataset"]["num_images"] == 3
    assert "as many visual tokens as the size asks for" in (swept / "results.md").read_text()
    stages = content["runs"][1]["timings_ms"]
    assert stages["vision"] > 0 and stages["selection"] > 0 and stages["mask_encoder"] > 0


def test_a_run_alone_gives_what_it_gives_in_a_sweep(swept, unipixel, rows, tmp_path):
    evaluate(options(tmp_path, unipixel, rows, methods=["random"], budgets=[0.25], seeds=[1], batch_size=3))
    table = records(swept)
    assert records(tmp_path).equals(table.filter([row == "random@0.25#1" for row in table["run_id"].to_pylist()]))


def test_a_sweep_encodes_each_picture_once(unipixel, rows, tmp_path):
    model = AutoModelForReferringSegmentation.from_pretrained(unipixel).eval()
    segmenter = SweepSegmenter(model, AutoProcessor.from_pretrained(unipixel))
    calls = {"tower": [], "sam": []}
    for name, module in (("tower", model.model.visual.patch_embed), ("sam", model.mask_model.vision_encoder)):
        module.register_forward_pre_hook(lambda module, args, name=name: calls[name].append(len(args[0])))
    sample = load_split("rows", "all", rows)[0]
    shared = segmenter.encode(sample.load_image(), sample.sentences)
    patches = int(shared.parts[0]["video_grid_thw"].prod())
    for run in plan_runs(options(tmp_path, unipixel, rows)):
        assert segmenter.segment(run, shared).masks.shape == (3, *SIZES[0])
    assert calls == {"tower": [patches], "sam": [1]}


def test_a_method_that_is_not_defined_is_left_out(unipixel, rows, tmp_path):
    evaluate(options(tmp_path, unipixel, rows, methods=["cls_attention", "random"], budgets=[20], max_images=1))
    [entry] = results(tmp_path)["skipped"]
    assert entry["run_id"] == "cls_attention@20" and "not defined for Qwen2.5-VL" in entry["reason"]


def test_whole_sentences_have_their_own_question_and_keep_their_words(unipixel, tmp_path):
    model = AutoModelForReferringSegmentation.from_pretrained(unipixel).eval()
    processor = AutoProcessor.from_pretrained(unipixel)
    segmenter = SweepSegmenter(model, processor)

    def question(**details):
        row = {"image": Image.new("RGB", (40, 40)), "text": "The Mug.", "mask": None, **details}
        sample = load_split("rows", "x", [row])[0]
        [ids] = segmenter.encode(sample.load_image(), sample.sentences).parts[0]["input_ids"]
        return processor.decode(ids).split("<|vision_end|>")[1].split("<|im_end|>")[0]

    assert question() == "Please segment the Mug in this image."
    assert question(is_sentence=False) == "Please segment the The Mug. in this image."
    assert question(is_sentence=True) == "The Mug. Please provide the segmentation mask."


def test_the_table_says_what_was_kept_where_pictures_have_many_sizes():
    entry = {"budget": 20, "retention_ratio": None, "num_kept_mean": 31.5}
    assert _tokens(entry, None) == "20, kept 31.5"
    assert _tokens({**entry, "num_kept_mean": 20.0}, None) == "20"
    assert _tokens({**entry, "budget": None, "retention_ratio": 0.25}, None) == "1/4"
    assert _tokens({**entry, "budget": None}, None) == "all"
