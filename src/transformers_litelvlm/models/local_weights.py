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
from transformers_litelvlm.utils.hub_names import check_loadable
from transformers_litelvlm.utils.messages import quoted
from transformers_litelvlm.utils.weight_files import check_weights


class LocalWeightsMixin:
    """For model classes, in front of upstream's `from_pretrained`, which reads whatever an index names."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        """As upstream.

        Raises:
            OSError: a path that does not exist, or a repository that cannot be reached.
            ValueError: in a local folder, an index of weights names a file elsewhere, or weights cannot be read.
        """
        source, files = args[0] if args else kwargs.get("pretrained_model_name_or_path"), []
        if source:
            check_loadable(source, **kwargs)
        if source and os.path.isdir(source):
            folder = Path(source, kwargs.get("subfolder") or "")
            for index in (*folder.glob("*.safetensors.index*.json"), *folder.glob("*.bin.index*.json")):
                _check_index(index)
            files = sorted((*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")))
        for file in files:
            _check(file, check_weights)
        try:
            return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        except (OSError, ValueError, MemoryError):
            raise
        except Exception:  # the readers of weights raise all kinds, and none says of which file
            for file in files:
                _check(file, _open)
            raise


def _check_index(path: Path) -> None:
    index = read_json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{path} has no `weight_map` of tensor names to files: download it again.")
    for file in files.values():
        if not isinstance(file, str) or file != os.path.basename(file):
            raise ValueError(f"{path} must name files beside it, not {quoted(file)}: download the checkpoint again.")


def _check(file: Path, check: Any) -> None:
    try:
        check(file)
    except Exception as error:
        # What torch says of a pickle begins with how to switch its protection off.
        reason = str(error) if not isinstance(error, UnpicklingError) else "more than tensors; nothing of it was run"
        raise ValueError(f"{file} cannot be read as weights ({reason:.120}): download it again.") from error


def _open(file: Path) -> None:
    if file.suffix != ".safetensors":
        torch.load(file, map_location="meta", weights_only=True)
        return
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            _ = str_to_torch_dtype[opened.get_slice(name).get_dtype()]
