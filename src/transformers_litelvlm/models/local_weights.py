"""Weights in a local folder: an index leads nowhere else, and a file that cannot be read is named."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open

from transformers_litelvlm.models.upstream import str_to_torch_dtype
from transformers_litelvlm.utils.files import read_json
from transformers_litelvlm.utils.messages import quoted


class LocalWeightsMixin:
    """For model classes, in front of upstream's `from_pretrained`, which reads what any index names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any):
        """As upstream.

        Raises:
            ValueError: in a local folder, an index of weights names a file elsewhere, or weights cannot be read.
        """
        source = pretrained_model_name_or_path
        folder = Path(source, kwargs.get("subfolder") or "") if source and os.path.isdir(source) else None
        if folder is not None:
            for index in sorted(folder.glob("*.index*.json")):
                _check_index(index)
        try:
            return super().from_pretrained(source, *args, **kwargs)  # type: ignore[misc]
        except (OSError, ValueError, MemoryError):
            raise
        except Exception:  # the readers of weights raise all kinds, and none says of which file
            for file in sorted(folder.glob("*")) if folder is not None else ():
                if file.suffix in (".safetensors", ".bin"):
                    _check_file(file)
            raise


def _check_index(path: Path) -> None:
    index = read_json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{path} has no `weight_map` of tensor names to files: download it again.")
    for file in files.values():
        if not isinstance(file, str) or file != os.path.basename(file):
            raise ValueError(f"{path} must name files beside it, not {quoted(file)}: download the checkpoint again.")


def _check_file(file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    _ = str_to_torch_dtype[opened.get_slice(name).get_dtype()]
        else:
            torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:
        # What torch says of a pickle begins with how to switch its protection off.
        reason = (
            str(error) if not isinstance(error, UnpicklingError) else "more than tensors, and nothing of it was run"
        )
        raise ValueError(f"{file} cannot be read as weights ({reason:.120}): download it again.") from error
