"""A checkpoint to read from: a folder, or a repository on the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from transformers_litelvlm.conversion.errors import ConversionError, shortened
from transformers_litelvlm.conversion.weight_files import TensorInfo, read_metadata, read_tensors
from transformers_litelvlm.models.upstream import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    extract_commit_hash,
)
from transformers_litelvlm.utils.hub_names import check_source


WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


class CheckpointSource:
    """A checkpoint in a local folder or on the Hub, file by file. Code in it is never run.

    Without a connection, the Hugging Face cache alone is used. All files of a Hub repository come from one commit.

    Args:
        path_or_id: folder, or id of a repository on the Hub.
        revision: branch, tag or commit of the repository.
        token: access token, if the one of `hf auth login` is not right.

    Raises:
        ConversionError: if `path_or_id` is a file, a path without a folder, or the Hub cannot be reached.
    """

    def __init__(self, path_or_id: str | os.PathLike, revision: str | None = None, token: str | None = None) -> None:
        self.path_or_id = os.fspath(path_or_id)
        self.revision = revision
        self.commit_hash: str | None = None
        self._token = token
        self._tensors: dict[str, TensorInfo] | None = None
        self.is_local = os.path.isdir(self.path_or_id)
        if not self.is_local and os.path.exists(self.path_or_id):
            raise ConversionError(
                f"{self.path_or_id} is no folder: give the folder of a checkpoint, or its id on the Hub"
            )
        try:
            check_source(path_or_id)
        except (OSError, ValueError) as error:
            raise ConversionError(str(error)) from error

    def __str__(self) -> str:
        return self.path_or_id

    @property
    def public_name(self) -> str:
        """Hub id; of a local folder only its name, for what others read."""
        return Path(self.path_or_id).resolve().name if self.is_local else self.path_or_id

    @property
    def pinned_revision(self) -> str | None:
        """The commit that the first file came from, so that all come from it; before that what was asked for."""
        return self.commit_hash or self.revision

    def describe(self) -> dict[str, str | None]:
        """Where the files came from, for a report."""
        return {"path_or_id": self.path_or_id, "revision": self.revision, "commit_hash": self.commit_hash}

    def file(self, name: str) -> Path | None:
        """Path of a file, downloaded if needed; `None` if there is none (or it cannot be reached)."""
        try:
            path = cached_file(
                self.path_or_id,
                name,
                revision=self.pinned_revision,
                token=self._token,
                _raise_exceptions_for_missing_entries=False,
            )
        # The Hub's client raises errors of its own HTTP library as well.
        except Exception as error:
            raise ConversionError(f"{self}: {name} cannot be fetched: {' '.join(str(error).split())}") from error
        if path is not None and not self.is_local:
            self.commit_hash = extract_commit_hash(path, self.commit_hash)
        return None if path is None else Path(path)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file; `None` if there is none."""
        path = self.file(name)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConversionError(f"{path} is no valid JSON ({error}): download it again") from error
        if not isinstance(content, dict):
            raise ConversionError(f"{path} holds a JSON {type(content).__name__} instead of an object")
        return content

    def tensors(self) -> dict[str, TensorInfo]:
        """Shape, dtype and file of every tensor. No values are read, except from `.bin` files older than torch 1.6.

        Raises:
            ConversionError: if there are no weights, a file is missing, damaged or holds more than tensors, a tensor
                is in two files, or the index names what is not there.
        """
        if self._tensors is None:
            self._tensors = self._read_metadata()
        return self._tensors

    def load(self, file: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of one file (all, or those in `names`), one by one. Finish with a file before starting the next."""
        if names is None:
            names = [name for name, info in self.tensors().items() if info.file == file]
        return read_tensors(file, names)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor."""
        info = self.tensors().get(name)
        if info is None:
            raise ConversionError(f"{self} holds no tensor `{name}`")
        return next(tensor for _, tensor in read_tensors(info.file, [name]))

    def _read_metadata(self) -> dict[str, TensorInfo]:
        files, index = self._weight_files()
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in read_metadata(file).items():
                if name in tensors:
                    raise ConversionError(
                        f"`{name}` is in {tensors[name].file.name} and in {file}: remove the file that is left over"
                    )
                tensors[name] = info
        absent = [name for name, file in index.items() if name not in tensors or tensors[name].file.name != file]
        if absent:
            raise ConversionError(
                f"{index[absent[0]]} of {self} lacks {shortened(absent)}, which the index says are in it:"
                " download both again"
            )
        return tensors

    def _weight_files(self) -> tuple[list[Path], dict[str, str]]:
        """The files of weights, and what the index says is in which (empty if there is no index)."""
        for name in WEIGHT_FILES:
            path = self.file(name)
            if path is None:
                continue
            if not name.endswith(".json"):
                return [path], {}
            index = self.read_json(name).get("weight_map")
            if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
                raise ConversionError(f"{path} has no `weight_map` of tensor names to files: download it again")
            return [self._shard(file_name, path) for file_name in sorted(set(index.values()))], index
        where = "in that folder" if self.is_local else "on the Hub or in the cache (is there a connection?)"
        raise ConversionError(f"{self}: no weights found {where}; looked for {', '.join(WEIGHT_FILES)}")

    def _shard(self, file_name: str, index: Path) -> Path:
        # An index is a stranger's file: it must not make us read outside of the checkpoint.
        path = self.file(file_name) if file_name == os.path.basename(file_name) else None
        if path is None:
            raise ConversionError(f"{file_name} is missing, which {index} names: download it")
        return path
