"""Scores of images: golden figures on real photos, and cases worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.support.original_checkpoints import SHARED
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.masks import decode_mask, decode_segmentation, encode_mask
from transformers_litelvlm.evaluation.metrics import SentenceScore, score_masks, summarize


def grid(*rows: str) -> np.ndarray:
    """A batch of one mask drawn in text."""
    return np.array([[character == "#" for character in row] for row in rows])[None]


# --- golden ---


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the miniature data sets are not part of the project")
def test_bounding_boxes_as_predictions_score_as_in_the_golden_file():
    folder = SHARED / "data" / "res"
    samples = json.loads((folder / "annotations.json").read_text())["samples"]
    rows = [
        {"image": str(folder / "images" / item["file_name"]), "sentences": item["sentences"], "mask": item["mask"]}
        for item in samples
    ]
    scores = []
    for sample, item in zip(load_split("rows", "all", rows), samples, strict=True):
        for sentence in sample.sentences:
            prediction = np.zeros_like(sentence.mask)
            if item["bbox"] is not None:
                x, y, width, height = item["bbox"]
                left, top = math.floor(x), math.floor(y)
                prediction[top : math.ceil(y + height), left : math.ceil(x + width)] = True
            scores += score_masks(prediction[None], sentence.mask[None])
    golden = json.loads((folder / "golden_bbox_prediction.json").read_text())
    summary = summarize(scores)
    assert sum(score.intersection for score in scores) == golden["intersection"]
    assert sum(score.union for score in scores) == golden["union"]
    assert (summary["sentences"], summary["empty_targets"]) == (golden["n_sentences"], golden["no_target"]) == (90, 5)
    assert summary["ciou"] == pytest.approx(golden["cIoU"], abs=1e-6)
    assert summary["giou"] == pytest.approx(golden["gIoU"], abs=1e-6)
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert summary[f"precision@{threshold}"] == pytest.approx(golden[f"P@{threshold}"], abs=1e-6)
    # The five sentences without target are right under LISA's rule and wrong under LAVT's.
    assert summarize(scores, "lavt")["giou"] == pytest.approx(golden["gIoU"] - 5 / 90, abs=1e-6)
    assert summarize(scores, "lavt")["ciou"] == summary["ciou"]


# --- by hand ---


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_counts_of_two_masks(kind):
    prediction, target = grid("##..", "##.."), grid(".##.", ".##.")
    if kind == "torch":
        prediction, target = torch.from_numpy(prediction), torch.from_numpy(target)
    (score,) = score_masks(prediction, target)
    assert score == SentenceScore(intersection=2, union=6, prediction_area=4, target_area=4)
    assert score.iou() == pytest.approx(1 / 3)
    assert not score.empty_prediction and not score.empty_target


def test_empty_for_empty_is_worth_what_the_evaluator_says():
    (score,) = score_masks(grid("..", ".."), grid("..", ".."))
    assert (score.union, score.iou(), score.iou(empty_iou=0.0)) == (0, 1.0, 0.0)
    for rule, value in (("lisa", 1.0), ("glamm", 1.0), ("seg-zero", 0.0), ("cris", 0.0)):
        summary = summarize([score], rule)
        assert (summary["giou"], summary["ciou"], summary["precision@0.9"]) == (value, value, value)


def test_a_prediction_where_nothing_is_meant_costs_both_scores():
    wrong = score_masks(grid("##", ".."), grid("..", ".."))
    right = score_masks(grid("##", "##"), grid("##", "##"))
    summary = summarize(wrong + right)
    # Intersections 0 + 4, unions 2 + 4.
    assert summary["ciou"] == pytest.approx(4 / 6) and summary["giou"] == 0.5
    assert (summary["empty_targets"], summary["empty_predictions"]) == (1, 0)


def test_no_prediction_where_something_is_meant_stays_in_the_denominator():
    scores = score_masks(grid("..", ".."), grid("##", ".#")) + score_masks(grid("#.", ".."), grid("#.", ".."))
    summary = summarize(scores)
    assert summary["ciou"] == pytest.approx(1 / 4) and summary["giou"] == 0.5 and summary["empty_predictions"] == 1


def test_one_pixel_objects():
    hit, miss = score_masks(np.concatenate([grid("#."), grid("#.")]), np.concatenate([grid("#."), grid(".#")]))
    assert (hit.iou(), hit.union, miss.iou(), miss.union) == (1.0, 1, 0.0, 2)


def test_ignored_pixels_are_in_no_number():
    prediction, target, ignore = grid("###.", "#..."), grid("##..", "##.."), grid("..##", "##..")
    (score,) = score_masks(prediction, target, ignore[0])
    # Only the upper left two pixels and the lower right two count.
    assert score == SentenceScore(2, 2, 2, 2)
    (score,) = score_masks(prediction, target, np.ones_like(target))
    assert score == SentenceScore(0, 0, 0, 0)
    torch_masks = [torch.from_numpy(mask) for mask in (prediction, target, ignore)]
    assert score_masks(*torch_masks) == score_masks(prediction, target, ignore)


def test_overlapping_parts_of_an_object_count_once():
    parts = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 0, 6, 0, 6, 4, 2, 4]]
    target = decode_segmentation(parts, 4, 8)[None]
    everything = np.zeros((1, 4, 8), dtype=bool)
    everything[:, :, :6] = True
    (score,) = score_masks(everything, target)
    assert score.iou() == 1.0 and score.union == 24  # added up, the overlap would be 8 wrong pixels


def test_a_crowd_in_run_lengths():
    target = decode_mask({"size": [3, 4], "counts": [3, 3, 6]})[None]
    (score,) = score_masks(grid(".##.", ".##.", "...."), target)
    assert score == SentenceScore(intersection=2, union=5, prediction_area=4, target_area=3)


def test_an_overlap_of_exactly_the_threshold_is_a_hit():
    (score,) = score_masks(grid("#."), grid("##"))
    summary = summarize([score])
    assert (summary["precision@0.5"], summary["precision@0.6"]) == (1.0, 0.0)


def test_many_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(0)
    predictions, targets, ignore = (rng.random((5, 9, 7)) < 0.5 for _ in range(3))
    singles = [
        score_masks(*(mask[place : place + 1] for mask in (predictions, targets, ignore))) for place in range(5)
    ]
    assert score_masks(predictions, targets, ignore) == [score for (score,) in singles]


def test_pixels_of_large_splits_do_not_overflow():
    score = SentenceScore(2_000_000, 4_000_000, 3_000_000, 3_000_000)
    assert summarize([score] * 2000)["ciou"] == 0.5  # 8e9 pixels


def test_bad_input():
    mask = grid("#.")
    with pytest.raises(TypeError, match="`predictions` must be boolean, got float64"):
        score_masks(mask * 0.7, mask)
    with pytest.raises(ValueError, match=r"got \(1, 1, 2\) and \(1, 1, 3\)"):
        score_masks(mask, grid("#.."))
    with pytest.raises(ValueError, match=r"got \(2, 1, 2\) and \(1, 1, 2\)"):
        score_masks(np.concatenate([mask, mask]), mask)  # never paired by what is shorter
    with pytest.raises(ValueError, match="`ignore` has shape"):
        score_masks(mask, mask, grid("#..")[0])
    with pytest.raises(ValueError, match="`rule` must be one of lisa"):
        summarize([SentenceScore(1, 1, 1, 1)], "mine")
    with pytest.raises(ValueError, match="nothing to average"):
        summarize([])


# --- modules of `evaluate` ---


def pairs() -> tuple[list[dict], list[dict], dict]:
    rng = np.random.default_rng(1)
    masks = [[rng.random((11, 13)) < share for share in (0.3, 0.5)] for _ in range(4)]
    masks.append([np.zeros((11, 13), dtype=bool)] * 2)
    scores = [score for prediction, target in masks for score in score_masks(prediction[None], target[None])]
    return [encode_mask(p) for p, _ in masks], [encode_mask(t) for _, t in masks], summarize(scores)


def test_modules_combine_and_say_what_the_functions_say():
    import evaluate

    from transformers_litelvlm.evaluation.modules import load_module

    predictions, references, expected = pairs()
    names = ("ciou", "giou", "precision_at_iou")
    together = evaluate.combine([load_module(name) for name in names])
    result = together.compute(predictions=predictions, references=references)
    assert result == {name: value for name, value in expected.items() if "_" not in name and name != "sentences"}
    for prediction, reference in zip(predictions, references, strict=True):
        together.add(prediction=prediction, reference=reference)
    assert together.compute() == result
    (alone,) = load_module("giou").compute(predictions=predictions, references=references, rule="lavt").values()
    assert alone == pytest.approx(result["giou"] - 1 / 5)


def test_modules_leave_ignored_pixels_out():
    from transformers_litelvlm.evaluation.modules import load_module

    target, prediction = grid("##.."), grid("###.")
    references = [encode_mask(target[0]) | {"ignore": encode_mask(grid("..#.")[0])["counts"]}]
    references.append(encode_mask(target[0]) | {"ignore": ""})
    module = load_module("giou", config_name="ignore")
    result = module.compute(predictions=[encode_mask(prediction[0])] * 2, references=references)
    assert result["giou"] == pytest.approx((1 + 2 / 3) / 2)


def test_an_unknown_module_lists_the_known_ones():
    from transformers_litelvlm.evaluation.modules import load_module

    with pytest.raises(ValueError, match="must be one of ciou, giou"):
        load_module("miou")
