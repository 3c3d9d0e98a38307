"""Scores of referring video segmentation: region similarity J and boundary accuracy F, as DAVIS defines them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from transformers_litelvlm.utils.extras import needs_extra


# Share of the image's diagonal by which a boundary may be off.
BOUNDARY_TOLERANCE = 0.008
BACKGROUND_PROBABILITY = 0.1


@dataclass(frozen=True)
class VideoScore:
    """Score of one expression in one video, or of one object.

    Args:
        region: J of every frame.
        boundary: F of every frame.
    """

    region: tuple[float, ...]
    boundary: tuple[float, ...]

    @property
    def j(self) -> float:
        return float(np.mean(self.region))

    @property
    def f(self) -> float:
        return float(np.mean(self.boundary))

    @property
    def j_and_f(self) -> float:
        return (self.j + self.f) / 2


def region_similarity(prediction: np.ndarray, target: np.ndarray) -> float:
    """J: intersection over union of two masks `(height, width)`, 1 if both are empty.

    Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016.
    """
    union = np.count_nonzero(prediction | target)
    return np.count_nonzero(prediction & target) / union if union else 1.0


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a `(height, width)` mask that differ from their right, lower or lower right neighbour.

    The image's edge is no boundary.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def boundary_accuracy(prediction: np.ndarray, target: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F: harmonic mean of the shares of either boundary that lie near the other one.

    1 if neither mask has a boundary (both empty, or filling the image), 0 if only one has.

    Args:
        prediction, target: `(height, width)` booleans.
        tolerance: what is near, as a share of the image's diagonal, rounded up to pixels.
    """
    with needs_extra("eval", "The score of boundaries"):
        from scipy.spatial import KDTree

    radius = math.ceil(tolerance * math.hypot(*target.shape))
    found, meant = (np.argwhere(mask_boundary(mask)) for mask in (prediction, target))
    if len(found) == 0 or len(meant) == 0:
        return float(len(found) == len(meant))

    def near(points: np.ndarray, others: np.ndarray) -> float:
        # The bound is exclusive, and no distance between pixels lies just above a whole number.
        distances, _ = KDTree(others).query(points, distance_upper_bound=radius + 1e-3)
        return float(np.isfinite(distances).mean())

    precision, recall = near(found, meant), near(meant, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score_frames(
    predictions: Iterable[np.ndarray], targets: Iterable[np.ndarray], voids: Iterable[np.ndarray] | None = None
) -> VideoScore:
    """Scores one expression over all frames of its video; frames are taken one by one, so generators will do.

    Every frame counts, also those before the object appears and the first and last (the semi-supervised task of DAVIS
    leaves these out).

    Args:
        predictions: masks `(height, width)`, booleans.
        targets: as many masks.
        voids: as many masks of pixels that are removed from both.

    Returns:
        J and F of every frame.

    Raises:
        ValueError: no frame, another number of frames, or of another shape, or masks that are not boolean.
    """
    region: list[float] = []
    boundary: list[float] = []
    for frame in zip_longest(predictions, targets, *([] if voids is None else [voids])):
        if any(mask is None or mask.dtype != bool or mask.shape != frame[0].shape for mask in frame):
            found = ", ".join("nothing" if mask is None else f"{mask.dtype} {mask.shape}" for mask in frame)
            raise ValueError(f"Frame {len(region)}: all must have boolean masks of one shape, got {found}.")
        prediction, target, *void = frame
        if void:
            prediction, target = prediction & ~void[0], target & ~void[0]
        region.append(region_similarity(prediction, target))
        boundary.append(boundary_accuracy(prediction, target))
    if not region:
        raise ValueError("`targets` has no frame.")
    return VideoScore(tuple(region), tuple(boundary))


def summarize_videos(scores: Sequence[VideoScore]) -> dict[str, float]:
    """Mean over expressions (MeViS, Sa2VA, UniPixel), whatever the length of their videos: `j`, `f`, `j_and_f` between
    0 and 1, and `expressions`.

    There must be at least one score. An expression without a prediction belongs here too, as a prediction of empty
    masks.
    """
    if not scores:
        raise ValueError("`scores` is empty: there is nothing to average.")
    j, f = (float(np.mean([getattr(score, name) for score in scores])) for name in "jf")
    return {"j": j, "f": f, "j_and_f": (j + f) / 2, "expressions": len(scores)}


# --- Ref-DAVIS17 as ReferFormer and VideoGLaMM score it ---


def merge_objects(probabilities: Mapping[str, np.ndarray], background: float = BACKGROUND_PROBABILITY) -> np.ndarray:
    """One map of object numbers from the predictions of several expressions: the most probable object of each pixel.

    As ReferFormer's code does, a probability below one half counts as 0.

    Args:
        probabilities: object number to `(height, width)` probabilities, or booleans.
        background: probability of none of them.

    Returns:
        `(height, width)` int64, 0 for background. Of equal probabilities the background's wins, then the smallest
        number's.
    """
    numbers = sorted(probabilities, key=int)
    layers = np.stack([np.asarray(probabilities[number], np.float32) for number in numbers])
    layers = np.concatenate([np.full_like(layers[:1], background), np.where(layers < 0.5, 0, layers)])
    return np.array([0, *map(int, numbers)])[layers.argmax(0)]


def objects_of(targets: Iterable[np.ndarray]) -> list[int]:
    """Numbers of the objects that occur in annotated maps; 0 is the background, 255 void."""
    return sorted(set().union(*(np.unique(frame).tolist() for frame in targets)) - {0, 255})


def score_unsupervised(predictions: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> list[VideoScore]:
    """The unsupervised task of DAVIS: every object of the video is given the prediction that suits it best.

    Predictions are assigned to objects one to one so that the sum of J&F is largest, whatever their numbers: objects
    that were mixed up are forgiven, so this does not measure referring in the strict sense.

    Args:
        predictions: per frame a map of object numbers `(height, width)`, 0 for background.
        targets: as many annotated maps; pixels of 255 are void and count nowhere.

    Returns:
        One per annotated object, by number.

    Raises:
        ValueError: no frame or no object is annotated, or the numbers of frames differ.
    """
    with needs_extra("eval", "The assignment of objects"):
        from scipy.optimize import linear_sum_assignment

    if not len(targets) or len(predictions) != len(targets):
        raise ValueError(f"`predictions` has {len(predictions)} frames, `targets` {len(targets)}.")
    voids = [frame == 255 for frame in targets]
    objects = objects_of(targets)
    if not objects:
        raise ValueError("`targets` has no object.")
    proposals = sorted(set().union(*(np.unique(frame).tolist() for frame in predictions)) - {0})
    # An object without a prediction is scored against empty masks: a number that occurs nowhere.
    proposals += [-1 - place for place in range(len(objects) - len(proposals))]
    table = [
        [
            score_frames((frame == proposal for frame in predictions), (frame == item for frame in targets), voids)
            for proposal in proposals
        ]
        for item in objects
    ]
    rows, columns = linear_sum_assignment([[score.j_and_f for score in row] for row in table], maximize=True)
    return [table[row][column] for row, column in zip(rows, columns)]


def summarize_annotators(scores: Sequence[Sequence[VideoScore]]) -> dict[str, float]:
    """Mean over the annotators of the mean over all objects of all videos.

    Args:
        scores: per annotator, at least one, the scores of every object of every video.

    Returns:
        `j`, `f`, `j_and_f` between 0 and 1, and `annotators`.

    Raises:
        ValueError: no annotator, or one without scores.
    """
    if not scores:
        raise ValueError("`scores` is empty: there is nothing to average.")
    summaries = [summarize_videos(annotator) for annotator in scores]
    means = {name: float(np.mean([summary[name] for summary in summaries])) for name in ("j", "f", "j_and_f")}
    return means | {"annotators": len(summaries)}
