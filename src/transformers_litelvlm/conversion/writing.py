"""Safetensors files written tensor by tensor, in any order, from a plan of all names, shapes and dtypes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.weight_files import TensorInfo
from transformers_litelvlm.models.upstream import SAFE_WEIGHTS_INDEX_NAME, str_to_torch_dtype


_NAME_OF_DTYPE = {dtype: name for name, dtype in str_to_torch_dtype.items()}


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    file: Path
    offset: int
    info: TensorInfo


class ShardedWriter:
    """Write parameters into one or several safetensors files, named and indexed as transformers does.

    A tensor is written when it arrives, at the place planned for it, so that no more than one is in memory. A file has
    no valid header until every tensor of every file is there: the files of an interrupted run do not load.

    Args:
        folder: existing folder for the files.
        targets: shape and dtype of every parameter, in the order in which they fill the files.
        max_shard_size: largest size of a file; a larger parameter has a file of its own.

    Raises:
        ConversionError: if safetensors has no name for a dtype.
        OSError: if the disk is full, for example; `filename` says which file could not be written.
    """

    def __init__(self, folder: Path, targets: Mapping[str, TensorInfo], max_shard_size: int | str = "5GB") -> None:
        for name, info in targets.items():
            if info.dtype not in _NAME_OF_DTYPE:
                raise ConversionError(f"{name} has the dtype {info.dtype}, which safetensors cannot hold: use --dtype")
        self._split = split_state_dict_into_shards_factory(
            dict(targets),
            get_storage_size=lambda info: info.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        self._folder = folder
        self._places: dict[str, _Place] = {}
        self._headers: dict[Path, bytes] = {}
        self._written: dict[str, int] = dict.fromkeys(targets, 0)
        self._opened: dict[Path, io.FileIO] = {}
        for file_name, names in self._split.filename_to_tensors.items():
            self._lay_out(folder / file_name, {name: targets[name] for name in names})

    @property
    def file_names(self) -> list[str]:
        """The files of weights."""
        return list(self._split.filename_to_tensors)

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._opened:
            self._opened.popitem()[1].close()

    def write(self, name: str, tensor: torch.Tensor, row: int | None = None) -> None:
        """Write a parameter, or the piece number `row` of one along the first dimension, in its planned dtype. Raises
        ConversionError if not all numbers are finite in that dtype."""
        place = self._places[name]
        cast = tensor.to(place.info.dtype).contiguous()
        if not _is_finite(cast):
            way_out = (
                "too large for that --dtype: use bfloat16 or float32" if _is_finite(tensor) else "download it again"
            )
            raise ConversionError(f"{name} holds numbers that are not finite in {place.info.dtype}: {way_out}")
        content = cast.reshape(-1).view(torch.uint8).numpy()
        self._put(place.file, content.data, place.offset + (row or 0) * content.nbytes)
        self._written[name] += content.nbytes

    def finish(self) -> None:
        """Make the files valid, and write the index if there are several."""
        incomplete = [name for name, size in self._written.items() if size != self._places[name].info.nbytes]
        if incomplete:
            raise RuntimeError(f"{len(incomplete)} parameters were not written, the first is {incomplete[0]}")
        for file, header in self._headers.items():
            self._put(file, memoryview(header), 0)
        if self._split.is_sharded:
            count = sum(math.prod(place.info.shape) for place in self._places.values())
            index = {
                "metadata": {"total_parameters": count, **self._split.metadata},
                "weight_map": self._split.tensor_to_filename,
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            self._put(self._folder / SAFE_WEIGHTS_INDEX_NAME, memoryview(text.encode()), 0)

    def _lay_out(self, file: Path, infos: dict[str, TensorInfo]) -> None:
        """Plan the places in one file. Wide dtypes come first, so that every tensor is aligned to its own width."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begins, end = {}, 0
        for name, info in sorted(infos.items(), key=lambda item: -item[1].dtype.itemsize):
            begins[name], end = end, end + info.nbytes
            entries[name] = {
                "dtype": _NAME_OF_DTYPE[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [begins[name], end],
            }
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._headers[file] = len(header).to_bytes(8, "little") + header
        for name, begin in begins.items():
            self._places[name] = _Place(file, len(self._headers[file]) + begin, infos[name])

    def _put(self, file: Path, content: memoryview, offset: int) -> None:
        try:
            if file not in self._opened:
                self._opened[file] = open(file, "wb", buffering=0)  # noqa: SIM115 (closed by `__exit__`)
            self._opened[file].seek(offset)
            while content:
                # Linux writes at most 2 GB at a time, and less if the disk gets full: the next call then says so.
                content = content[self._opened[file].write(content) :]
        except OSError as error:
            error.filename = str(file)
            raise


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch has no extremes of float8
    # Extremes are NaN if anything is, and need no second tensor.
    return all(extreme.isfinite() for extreme in tensor.aminmax())
