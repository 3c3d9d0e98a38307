"""Label Studio's run lengths of a mask that was painted with a brush."""

from __future__ import annotations

import numpy as np


# Bits of the four kinds of run lengths that the format lets a writer choose, as Label Studio's own packages choose.
_SIZES = (3, 4, 8, 16)
_LONGEST = 1 << _SIZES[-1]
_CHANNELS = 4


def brush_rle(mask: np.ndarray) -> list[int]:
    """The bytes that `label_studio_sdk.converter.brush.encode_rle` makes of a mask as RGBA, without its package.

    Args:
        mask: (H, W) booleans.

    Returns:
        Bytes as numbers: the number of values in 32 bits, the bits of a value less 1 in 5, the four sizes less 1 in 4
        each; then, for each run, a 1, which size, the length less 1, and the value, 0 or 255.
    """
    values = mask.ravel()
    ends = np.flatnonzero(np.diff(values, append=~values[-1:])) + 1
    lengths = np.diff(ends, prepend=0) * _CHANNELS
    bits = [f"{values.size * _CHANNELS:032b}{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for left, is_inside in zip(lengths.tolist(), values[ends - 1].tolist(), strict=True):
        size = next((size for size in _SIZES if left <= 1 << size), _SIZES[-1])
        while left:
            length = min(left, _LONGEST)
            bits.append(f"1{_SIZES.index(size):02b}{length - 1:0{size}b}{255 * is_inside:08b}")
            left -= length
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))
