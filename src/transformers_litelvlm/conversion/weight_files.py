"""One file of weights, `.safetensors` or `.bin`: what is in it, and its tensors. Nothing in it is executed."""

from __future__ import annotations

import gc
import math
import pickle
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.models.upstream import str_to_torch_dtype
from transformers_litelvlm.utils.weight_files import check_weights


@dataclass(frozen=True)
class TensorInfo:
    """What is known about a tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_metadata(file: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of what is in a file. Only the old `.bin` format has its values read for that."""
    with _readable(file):
        check_weights(file)
        if file.suffix == ".safetensors":
            return _safetensors_metadata(file)
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConversionError(f"{file} holds a {type(values).__name__} instead of a table of named tensors")
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            raise ConversionError(
                f"{file}: `{name}` is a {type(value).__name__}, not a tensor: give the merged weights of a model,"
                " not the state of a training run"
            )
        if value.layout is not torch.strided or value.is_quantized:
            raise ConversionError(f"{file}: `{name}` is sparse or quantized: give the weights as plain tensors")
    return {name: TensorInfo(tuple(value.shape), value.dtype, file) for name, value in values.items()}


def read_tensors(file: Path, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors `names` of a file, one by one on the CPU; the file is mapped into memory and released at the end."""
    if file.suffix == ".safetensors":
        with _readable(file), safe_open(file, framework="pt") as opened:
            for name in names:
                yield name, opened.get_tensor(name)
    else:
        with _readable(file):
            values = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
            for name in names:
                yield name, values.pop(name).detach()
        del values
    gc.collect()


def _safetensors_metadata(file: Path) -> dict[str, TensorInfo]:
    infos = {}
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            entry = opened.get_slice(name)
            if entry.get_dtype() not in str_to_torch_dtype:
                raise ConversionError(f"{file}: `{name}` has the dtype {entry.get_dtype()}, which torch cannot hold")
            infos[name] = TensorInfo(tuple(entry.get_shape()), str_to_torch_dtype[entry.get_dtype()], file)
    return infos


def _starts_with(file: Path, beginning: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(beginning)) == beginning


def _is_zip(file: Path) -> bool:
    """Whether torch wrote the file as a zip archive. Before version 1.6 it did not; that format cannot be mapped."""
    return _starts_with(file, b"PK\x03\x04")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Every error of the readers, which raise half a dozen types, as one line that names the file."""
    try:
        yield
    except (ConversionError, MemoryError):
        raise
    except Exception as error:
        raise ConversionError(_explained(file, error)) from error


def _explained(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be read: {error.strerror or error}"
    if _starts_with(file, b"version https://git-lfs"):
        return f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder"
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"(?:GLOBAL|unrecognized function) (?P<what>[\w.]*\w)", str(error))
        if wanted:
            return (
                f"{file} refused: it holds `{wanted['what']}` beside tensors, which could run code when loaded;"
                " nothing in it was executed. Use a source with tensors only, best one with .safetensors files"
            )
        # What torch says here begins with how to switch its protection off.
        error = pickle.UnpicklingError("no file of tensors")
    detail = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
    return f"{file} is truncated or damaged ({detail}): download it again"
