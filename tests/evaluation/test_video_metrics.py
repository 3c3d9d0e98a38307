"""J and F against the official DAVIS code's results on real masks, and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.original_checkpoints import SHARED
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.evaluation.video_metrics import (
    boundary_accuracy,
    mask_boundary,
    merge_objects,
    region_similarity,
    score_frames,
    score_unsupervised,
    summarize_annotators,
    summarize_videos,
)


GOLDEN = SHARED / "data" / "davis_golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the miniature data sets are not part of the project")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    """The frames of car-shadow as object numbers `(40, height, width)`: annotated, and by two methods."""
    folders = {name: GOLDEN / name for name in ("osvos", "rvos")}
    folders["target"] = SHARED / "data" / "rvos" / "valid" / "Annotations"
    return {
        name: np.stack([np.array(Image.open(path)) for path in sorted((folder / "car-shadow").glob("*.png"))])
        for name, folder in folders.items()
    }


@needs_golden
@pytest.mark.parametrize("method", ["osvos", "rvos"])
def test_every_frame_of_two_methods(golden, maps, method):
    for proposal, expected in golden["methods"][method]["per_proposal"].items():
        # Proposals that are nearly always wrong are many; three of them and the good one will do.
        if int(proposal) > 4:
            continue
        score = score_frames(maps[method] == int(proposal), maps["target"] == 1)
        for frames, name in ((slice(None), "all_frames"), (slice(1, -1), "without_first_last")):
            j, f = np.mean(score.region[frames]), np.mean(score.boundary[frames])
            assert (j, f) == pytest.approx((expected[name]["J"], expected[name]["F"]), abs=TOLERANCE)
            assert (j + f) / 2 == pytest.approx(expected[name]["JF"], abs=TOLERANCE)
        if "J_per_frame" in expected:
            assert score.region == pytest.approx(expected["J_per_frame"], abs=TOLERANCE)
            assert score.boundary == pytest.approx(expected["F_per_frame"], abs=TOLERANCE)
            assert score.j_and_f == pytest.approx(expected["all_frames"]["JF"], abs=TOLERANCE)


@needs_golden
def test_corner_cases(golden, maps):
    target = maps["target"] == 1
    late = target.copy()
    late[:10] = False
    nothing = np.zeros_like(target)
    cases = {
        "identical": (target, target),
        "all_empty_vs_all_empty": (nothing, nothing),
        "gt_vs_empty_prediction": (nothing, target),
        "empty_gt_vs_prediction": (target, nothing),
        "gt_absent_first_10_frames_vs_full_prediction": (target, late),
        "gt_absent_first_10_frames_vs_itself": (late, late),
    }
    assert cases.keys() <= golden["corner_cases"].keys()
    for name, (prediction, truth) in cases.items():
        expected = golden["corner_cases"][name]
        score = score_frames(prediction, truth)
        assert (score.j, score.f) == pytest.approx((expected["J"], expected["F"]), abs=TOLERANCE), name


@needs_golden
def test_the_best_proposal_is_found(golden, maps):
    # 20 proposals on every fourth frame: the assignment must pick the one that the official code found best.
    frames = slice(0, 40, 4)
    (score,) = score_unsupervised(maps["rvos"][frames], maps["target"][frames])
    expected = golden["methods"]["rvos"]["per_proposal"][str(golden["methods"]["rvos"]["best_proposal"])]
    assert score.region == pytest.approx(expected["J_per_frame"][frames], abs=TOLERANCE)
    assert score.boundary == pytest.approx(expected["F_per_frame"][frames], abs=TOLERANCE)


# --- by hand ---


def box(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_region_similarity():
    assert region_similarity(box(0, 0, 10, 10), box(0, 5, 10, 15)) == pytest.approx(50 / 150)
    assert region_similarity(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 1.0
    assert region_similarity(box(0, 0, 1, 1), box(0, 0, 0, 0)) == 0.0


def test_the_boundary_of_a_box_lies_half_a_pixel_up_and_left():
    boundary = mask_boundary(box(2, 3, 5, 6, (8, 9)))
    expected = box(1, 2, 5, 6, (8, 9)) & ~box(2, 3, 4, 5, (8, 9))
    np.testing.assert_array_equal(boundary, expected)
    # The edge of the picture is no boundary.
    assert not mask_boundary(np.ones((8, 9), dtype=bool)).any()
    np.testing.assert_array_equal(mask_boundary(box(0, 0, 8, 4, (8, 9))), box(0, 3, 8, 4, (8, 9)))


def test_boundary_accuracy_forgives_the_tolerance_and_no_more():
    # 60 x 80: the diagonal is 100, so 0.008 of it rounds up to one pixel.
    target = box(20, 20, 40, 40)
    assert boundary_accuracy(target, target) == 1.0
    assert boundary_accuracy(box(19, 19, 41, 41), target) < 1.0  # its corners are sqrt(2) away
    assert boundary_accuracy(box(20, 21, 40, 41), target) == 1.0
    assert boundary_accuracy(box(22, 22, 42, 42), target) < 0.2
    assert boundary_accuracy(box(20, 22, 40, 42), target, tolerance=0.02) == 1.0
    assert boundary_accuracy(box(0, 0, 5, 5), target) == 0.0


def test_one_pixel_objects():
    pixel = box(30, 30, 31, 31)
    assert boundary_accuracy(pixel, pixel) == 1.0 and region_similarity(pixel, pixel) == 1.0
    assert boundary_accuracy(pixel, box(30, 31, 31, 32)) == 1.0 and region_similarity(pixel, box(30, 31, 31, 32)) == 0
    assert boundary_accuracy(pixel, box(0, 0, 0, 0)) == 0.0


def test_void_pixels_are_in_neither_mask():
    target, void = box(20, 20, 40, 40), box(20, 30, 40, 50)
    score = score_frames([box(20, 20, 40, 50)], [target], [void])
    assert (score.j, score.f) == (1.0, 1.0)
    assert score_frames([box(20, 20, 40, 50)], [target]).j == pytest.approx(20 / 30)


def test_means_are_over_expressions_not_frames():
    good = score_frames([box(0, 0, 9, 9)] * 9, [box(0, 0, 9, 9)] * 9)
    bad = score_frames([box(0, 0, 0, 0)], [box(0, 0, 9, 9)])
    assert summarize_videos([good, bad]) == {"j": 0.5, "f": 0.5, "j_and_f": 0.5, "expressions": 2}


def test_objects_are_merged_by_the_most_probable():
    merged = merge_objects(
        {"2": np.array([[0.9, 0.2, 0.05, 0.5]]), "10": np.array([[0.1, 0.8, 0.05, 0.5]])}  # 10 after 2, as numbers
    )
    assert merged.tolist() == [[2, 10, 0, 2]]
    assert merge_objects({"1": np.array([[True, False]])}).tolist() == [[1, 0]]


def test_swapped_objects_are_forgiven_and_a_missing_one_is_not():
    first, second = box(5, 5, 25, 25).astype(int), box(30, 40, 50, 70).astype(int)
    target = [first + 2 * second] * 2
    swapped = score_unsupervised([2 * first + second] * 2, target)
    assert [score.j_and_f for score in swapped] == [1.0, 1.0]
    missing = score_unsupervised([second] * 2, target)
    assert [score.j_and_f for score in missing] == [0.0, 1.0]
    summary = summarize_annotators([swapped, missing])
    assert summary == {"j": 0.75, "f": 0.75, "j_and_f": 0.75, "annotators": 2}
    for nobody in ([], [swapped, []]):  # not NaN
        with pytest.raises(ValueError, match="`scores` is empty"):
            summarize_annotators(nobody)


def test_the_four_annotators_of_a_video(tmp_path):
    from transformers_litelvlm.data.loading import load_split
    from transformers_litelvlm.data.referring_video import annotators

    first, second = box(5, 5, 25, 25), box(30, 40, 50, 70)
    folder = tmp_path / "valid" / "Annotations" / "two"
    folder.mkdir(parents=True)
    for frame in ("00000", "00001"):
        picture = first.astype(np.uint8) + 2 * second.astype(np.uint8)
        picture[0, 0] = 255
        Image.fromarray(picture).save(folder / f"{frame}.png")
    (tmp_path / "meta_expressions" / "valid").mkdir(parents=True)
    expressions = {str(number): {"exp": f"expression {number}"} for number in range(8)}
    videos = {"two": {"expressions": expressions, "frames": ["00000", "00001"]}}
    (tmp_path / "meta_expressions" / "valid" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))

    (video,) = load_split("ref-davis17", "valid", tmp_path)
    groups = annotators(video)
    assert [[entry.expression_id for entry in group.values()] for group in groups] == [
        [str(n), str(n + 4)] for n in range(4)
    ]
    assert [list(group) for group in groups] == [["1", "2"]] * 4
    scores = []
    for number, group in enumerate(groups):
        # The last annotator's sentences are always misunderstood as the first object.
        predicted = [
            merge_objects({item: (group["1"] if number == 3 else entry).mask(frame) for item, entry in group.items()})
            for frame in range(2)
        ]
        scores.append(score_unsupervised(predicted, [video.load_objects(frame) for frame in range(2)]))
    summary = summarize_annotators(scores)
    assert summary["j_and_f"] == pytest.approx((3 * 1.0 + 0.5) / 4)


def test_expressions_that_are_not_four_per_object():
    from transformers_litelvlm.data.referring_video import annotators
    from transformers_litelvlm.data.samples import VideoExpression, VideoSample

    expressions = tuple(VideoExpression(str(number), "x", ("1",)) for number in range(5))
    with pytest.raises(ValueError, match="5 expressions that are not four per object"):
        annotators(VideoSample("v", ("0",), ("0.jpg",), expressions))


def test_bad_input():
    one = box(0, 0, 1, 1)
    with pytest.raises(ValueError, match=r"Frame 0: .* got bool \(60, 80\), bool \(8, 9\)"):
        score_frames([one], [box(0, 0, 1, 1, (8, 9))])
    with pytest.raises(ValueError, match=r"bool \(60, 80\), bool \(8, 9\)\."):
        score_frames([one], [one], [box(0, 0, 1, 1, (8, 9))])
    for place, frames in enumerate([(1, 2, 2), (2, 1, 2), (2, 2, 1)]):
        found = ["nothing" if number == place else r"bool \(60, 80\)" for number in range(3)]
        with pytest.raises(ValueError, match=f"Frame 1: .* got {', '.join(found)}"):
            score_frames(*([one] * count for count in frames))
    with pytest.raises(ValueError, match="no frame"):
        score_frames([], [])
    with pytest.raises(ValueError, match="no object"):
        score_unsupervised([np.zeros((4, 4), int)], [np.zeros((4, 4), int)])


def test_the_module_of_evaluate():
    from transformers_litelvlm.evaluation.modules import load_module

    masks = [encode_mask(box(5, 5, 25, 25)), encode_mask(box(0, 0, 0, 0))]
    result = load_module("j_and_f").compute(predictions=[masks, masks[1:]], references=[masks[:1] * 2, masks[1:]])
    assert result == {"j": 0.75, "f": 0.75, "j_and_f": 0.75}


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_masks_of_numbers_are_no_masks(kind, place):
    """2 and 1 had nothing in common bit by bit, and voids of 0 and 1 removed nothing of a mask of 255."""
    masks = [box(0, 0, 9, 9)] * 3
    masks[place] = masks[place].astype(kind)
    with pytest.raises(ValueError, match=f"must have boolean masks .*{kind.__name__}"):
        score_frames(*([mask] for mask in masks))
