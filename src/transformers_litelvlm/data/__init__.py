"""Data: RefShapes, a synthetic set for referring segmentation, and readers of the public sets."""

from transformers_litelvlm.data.refshapes import (
    Expression,
    Scene,
    decode_mask,
    encode_mask,
    generate_scene,
    load_refshapes,
)


__all__ = ["Expression", "Scene", "decode_mask", "encode_mask", "generate_scene", "load_refshapes"]
