"""What the readers of files of weights take without a word, and should not."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from transformers_litelvlm.utils.messages import quoted


LARGEST_HEADER = 1 << 25  # bytes of a .safetensors file; that of 10,000 tensors has one million


def check_weights(file: Path) -> None:
    """Refuse a file whose content depends on who reads it. Values are not read.

    Raises:
        ValueError: the header of a .safetensors file is damaged or has a name twice, of which readers take either; a
            .bin file is a compressed archive, whose bytes torch maps as if they were the values.
    """
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes, more than {LARGEST_HEADER}")
            header = opened.read(length)
        try:
            json.loads(header, object_pairs_hook=_without_repeats)
        except RecursionError as error:
            raise ValueError("a header that is nested too deep") from error
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("a compressed archive, which torch never writes")


def _without_repeats(pairs: list[tuple[str, Any]]) -> None:
    """For a JSON object. It is not kept: with 100,000 of them, the garbage collector would take most of the time."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        [(repeated, _)] = Counter(names).most_common(1)
        raise ValueError(f"the name {quoted(repeated)} twice in its header")
