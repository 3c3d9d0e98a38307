"""Hostile files of weights, after the list of attacks that safetensors publishes, and pickles that run something."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


Weights = dict[str, torch.Tensor]


def header_of(weights: Weights) -> tuple[dict[str, Any], bytes]:
    """What safetensors says of the weights, all as float32, and their bytes."""
    header, body = {}, b""
    for name, value in weights.items():
        content = value.float().contiguous().numpy().tobytes()
        offsets = [len(body), len(body) + len(content)]
        header[name], body = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}, body + content
    return header, body


def packed(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _first(weights: Weights, **changes: Any) -> bytes:
    """The weights, whose first entry says something else."""
    header, body = header_of(weights)
    name = max(header, key=lambda name: header[name]["data_offsets"][1])  # the last of the file
    return packed({**header, name: {**header[name], **changes}}, body)


def _doubled(weights: Weights, same: bool) -> bytes:
    """One name twice in the text of the header."""
    header, body = header_of(weights)
    name, entry = next(iter(header.items()))
    other = entry if same else {**entry, "dtype": "I32"}
    text = json.dumps(header)
    return packed(f'{{"{name}": {json.dumps(other)}, {text[1:]}'.encode(), body)


def _overlapping(weights: Weights) -> bytes:
    header, body = header_of(weights)
    names = [name for name, entry in header.items() if entry["data_offsets"][0] and weights[name].numel() > 1]
    begin, end = header[names[0]]["data_offsets"]
    return packed({**header, names[0]: {**header[names[0]], "data_offsets": [begin - 4, end - 4]}}, body)


def _with_a_hole(weights: Weights) -> bytes:
    header, body = header_of(weights)
    for entry in list(header.values())[1:]:
        entry["data_offsets"] = [offset + 64 for offset in entry["data_offsets"]]
    return packed(header, body + bytes(64))


def _many_on_the_same(weights: Weights) -> bytes:
    """Few bytes, and hundred thousand tensors that are all of them."""
    entry = {"dtype": "F32", "shape": [200, 200], "data_offsets": [0, 160_000]}
    return packed({f"weight_{number}": entry for number in range(100_000)}, bytes(160_000))


def _cut(weights: Weights) -> bytes:
    return packed(*header_of(weights))[:-5]


# Name -> the bytes of a file `model.safetensors`.
SAFETENSORS: dict[str, Callable[[Weights], bytes]] = {
    "a header longer than the file": lambda w: packed(*header_of(w), length=10**7),
    "a header of all numbers": lambda w: packed(*header_of(w), length=2**64 - 1),
    "a header that ends early": lambda w: packed(*header_of(w), length=20),
    "a header of over 100 MB": lambda w: packed(b"{" + b" " * 100_000_001 + b"}", b""),
    "tensors that overlap": _overlapping,
    "a hole between tensors": _with_a_hole,
    "100,000 tensors on the same bytes": _many_on_the_same,
    "bytes behind the last tensor": lambda w: packed(*header_of(w)) + bytes(8),
    "a body that is cut off": _cut,
    "offsets beyond the file": lambda w: _first(w, data_offsets=[0, 2**40]),
    "offsets of all numbers": lambda w: _first(w, data_offsets=[2**64 - 8, 2**64 - 4]),
    "negative offsets": lambda w: _first(w, data_offsets=[-8, -4]),
    "an end before the beginning": lambda w: _first(w, data_offsets=[4, 0]),
    "a name twice": lambda w: _doubled(w, same=True),
    "a name twice, and two meanings": lambda w: _doubled(w, same=False),
    "an unknown dtype": lambda w: _first(w, dtype="F99"),
    "a dtype of another size": lambda w: _first(w, dtype="F64"),
    "a dtype that is no text": lambda w: _first(w, dtype=32),
    "a shape whose product overflows": lambda w: _first(w, shape=[2**62, 2**62]),
    "a shape that overflows to nothing": lambda w: _first(w, shape=[2**32, 2**32]),
    "a shape of nothing": lambda w: _first(w, shape=[0]),
    "a negative shape": lambda w: _first(w, shape=[-1]),
    "a header that is no UTF-8": lambda w: packed(b'{"\xff": 1}', b""),
    "a header that is no JSON": lambda w: packed(b"{]}", b""),
    "a header that is a list": lambda w: packed(b"[1, 2]", b""),
    "a header without end": lambda w: packed(b'{"a":' * 100_000, b""),
    "metadata that are no texts": lambda w: packed({"__metadata__": {"format": 7}, **header_of(w)[0]}, b""),
    "no file at all": lambda w: b"",
    "eight bytes": lambda w: bytes(8),
}


class Runs:
    """Makes a folder when it is unpickled, by a function of `os` or by what `call` gives."""

    def __init__(self, path: Any, call: Callable[[str], tuple] | None = None) -> None:
        self.path, self.call = str(path), call

    def __reduce__(self):
        return (os.mkdir, (self.path,)) if self.call is None else self.call(self.path)


def _by_eval(path: str) -> tuple:
    return builtins.eval, (f"__import__('os').mkdir({path!r})",)


def _torch_file(value: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _repacked(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch whose parts are changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def bomb(weights: Weights, megabytes: int) -> bytes:
    """Values that are zeros, a thousand times as many as bytes in the file."""
    return _repacked(
        _torch_file(weights),
        lambda name, content: bytes(megabytes * 2**20) if name.endswith("data/0") else content,
        zipfile.ZIP_DEFLATED,
    )


def compressed(weights: Weights) -> bytes:
    """The weights, in an archive that somebody packed again."""
    return _repacked(_torch_file(weights), lambda name, content: content, zipfile.ZIP_DEFLATED)


def _stack_global(module: bytes, name: bytes, argument: bytes) -> bytes:
    """Protocol 4: the names of module and function are put into the memo first, and taken from there."""
    texts = [b"\x8c" + bytes([len(text)]) + text + b"\x94" for text in (module, name)]
    return (
        b"\x80\x04"
        + texts[0]
        + b"0"
        + texts[1]
        + b"0h\x00h\x01\x93\x8c"
        + bytes([len(argument)])
        + argument
        + b"\x85R."
    )


def _numpy_objects(path: Any) -> bytes:
    return pickle.dumps(np.array([Runs(path)], dtype=object), 2)


# Name -> the bytes of a file `pytorch_model.bin`, given weights and the path of what must not appear.
PICKLES: dict[str, Callable[[Weights, Any], bytes]] = {
    "os.mkdir in an archive": lambda w, path: _torch_file({**w, "evil": Runs(path)}),
    "os.mkdir in the old format": lambda w, path: _torch_file({**w, "evil": Runs(path)}, zipped=False),
    "os.mkdir in a pickle": lambda w, path: pickle.dumps({"evil": Runs(path)}, 2),
    "builtins.eval": lambda w, path: _torch_file({**w, "evil": Runs(path, _by_eval)}),
    "names by the memo": lambda w, path: _stack_global(b"os", b"mkdir", str(path).encode()),
    "names by the memo in an archive": lambda w, path: _repacked(
        _torch_file(w),
        lambda name, content: _stack_global(b"os", b"mkdir", str(path).encode()) if name.endswith(".pkl") else content,
    ),
    "an array of objects": lambda w, path: _numpy_objects(path),
    "an array of objects among tensors": lambda w, path: _torch_file({**w, "a": np.array([Runs(path)], dtype=object)}),
    "a whole module": lambda w, path: _torch_file(torch.nn.Linear(2, 2)),
    "half an archive": lambda w, path: _torch_file(w)[: len(_torch_file(w)) // 2],
    "an archive without a pickle": lambda w, path: _npz(w),
    "no file at all": lambda w, path: b"",
    "text": lambda w, path: b"<html>404</html>",
}


def _npz(weights: Weights) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.float().numpy() for name, value in weights.items()})
    return buffer.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    """The one file of weights in `folder`."""
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index.json")]:
        file.unlink()
    path = folder / name
    path.write_bytes(content)
    return path
