"""Rows of a data set on the Hub, in a folder or in a parquet file, with pictures left encoded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.hub_names import check_source
from transformers_litelvlm.utils.messages import quoted, shortened


def open_rows(source: Any, split: str, streaming: bool = False, revision: str | None = None) -> Any:
    """Open rows with the `datasets` library. Pictures are not decoded: a row has them as `bytes` or `path`.

    Args:
        source: a Hub id, a folder laid out like one (`data/<split>-00000-of-00001.parquet`), a parquet or JSON file,
            which is taken whole, a list of dicts, or an open `Dataset` or `IterableDataset`.
        split: name of the split in the source; unused for a single file and for open rows.
        streaming: read while iterating instead of downloading first and keeping a copy.
        revision: version of the data set on the Hub.

    Returns:
        The rows, a `Dataset`, `IterableDataset` or list.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: the source is damaged, or does not have the split; names the source.
    """
    if isinstance(source, list):
        return source
    with needs_extra("eval", "Reading a data set"):
        import datasets

    if not isinstance(source, datasets.Dataset | datasets.IterableDataset):
        source = _load(os.fspath(source), split, streaming, revision)
    for name, feature in (source.features or {}).items():
        if isinstance(feature, datasets.Image):
            source = source.cast_column(name, datasets.Image(decode=False))
    return source


def _load(source: str, split: str, streaming: bool, revision: str | None) -> Any:
    import datasets

    path = Path(source)
    file_kind = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}.get(path.suffix)
    if not path.exists() and (file_kind or path.is_absolute()):
        raise FileNotFoundError(f"`source` {source} does not exist.")
    if path.exists() and not path.is_dir() and file_kind is None:
        raise ValueError(f"`source` {source} must be a folder, a .parquet, .json or .jsonl file, or a Hub id.")
    check_source(source, "dataset", "README.md")
    try:
        if file_kind:
            return datasets.load_dataset(file_kind, data_files=source, split="train", streaming=streaming)
        return datasets.load_dataset(source, split=split, streaming=streaming, revision=revision)
    except Exception as error:  # pyarrow, fsspec and huggingface_hub all have their own
        reason = error.__cause__ or error
        raise ValueError(f"Split {split!r} of {source} cannot be read: {type(reason).__name__}: {reason}") from error


def require_columns(rows: Any, expected: set[str], source: Any, advice: str) -> None:
    """Raises a `ValueError` that names the missing columns of `source`, and ends with `advice`."""
    name = source if isinstance(source, str | os.PathLike) else "`source`"
    if isinstance(rows, list) and not all(isinstance(row, Mapping) for row in rows[:1]):
        raise ValueError(f"{name} must hold rows, a dict of columns each, got {quoted(rows[0])}. {advice}")
    columns = set(rows[0]) if isinstance(rows, list) and rows else set(getattr(rows, "column_names", None) or expected)
    if missing := sorted(expected - columns):
        found = shortened(", ".join(sorted(map(str, columns))))
        raise ValueError(f"{name} has no column {', '.join(missing)}, only {found}. {advice}")
