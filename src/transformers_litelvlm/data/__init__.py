"""Data: RefShapes, a synthetic set for referring segmentation, and readers of the public sets."""

from transformers_litelvlm.data.loading import DATASETS, load_split
from transformers_litelvlm.data.masks import decode_mask, decode_segmentation, encode_mask
from transformers_litelvlm.data.refshapes import Scene, generate_scene, load_refshapes
from transformers_litelvlm.data.refshapes_queries import Expression
from transformers_litelvlm.data.samples import (
    ImageSample,
    ReferringSentence,
    UnreadableImageError,
    VideoExpression,
    VideoSample,
)
from transformers_litelvlm.data.splits import CountReport, ReferringSplit, SplitCounts, count_samples


__all__ = [
    "DATASETS",
    "CountReport",
    "Expression",
    "ImageSample",
    "ReferringSentence",
    "ReferringSplit",
    "Scene",
    "SplitCounts",
    "UnreadableImageError",
    "VideoExpression",
    "VideoSample",
    "count_samples",
    "decode_mask",
    "decode_segmentation",
    "encode_mask",
    "generate_scene",
    "load_refshapes",
    "load_split",
]
