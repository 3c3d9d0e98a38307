"""What a reader of Label Studio's brush masks sees."""

import numpy as np


def decoded(rle, shape):
    """What the format says, without a line of ours: thi.ng/rle-pack."""
    bits, at = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word, sizes, values = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)], []
    while len(values) < total:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    channels = np.array(values).reshape(*shape, 4)
    assert (channels == channels[..., :1]).all() and set(values) <= {0, 255}
    return channels[..., 0] == 255
