"""Rows of anybody's own data, in the columns one would expect; RefShapes too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformers_litelvlm.data.hub_rows import open_rows, require_columns
from transformers_litelvlm.data.masks import decode_mask, decode_segmentation
from transformers_litelvlm.data.samples import (
    ImageSample,
    ReferringSentence,
    UnreadableImageError,
    encoded,
    read_picture,
)
from transformers_litelvlm.utils.image_io import is_path, open_picture
from transformers_litelvlm.utils.messages import quoted, shortened


TEXT_COLUMNS = ("sentences", "sentence", "text")
MASK_COLUMNS = ("mask", "segmentation")
ADVICE = (
    "A row has `image`; `text`, `sentence` or `sentences`; `mask` or `segmentation`; optionally `ignore`, `image_id`."
    " Or `image` and `expressions`, a list of such entries without `image`."
)


def open_plain_rows(
    name: str,
    source: Any,
    split: str,
    streaming: bool = False,
    image_root: str | os.PathLike | None = None,
    revision: str | None = None,
    allow_urls: bool = False,
) -> tuple[Any, Any, tuple[str, ...]]:
    """Rows and reader of data in plain columns, see `ADVICE`.

    A mask is a picture or an array whose nonzero pixels are the object, a COCO run-length encoding, polygons in
    pixels, or `None` if nothing is meant. The sentences of a row or entry share its mask.

    An image is named by its `image_id`, or else by its path, or else by the number of its row. Rows with the same name
    are about one image, which intervals and tests are over.

    Args:
        source: a list of dicts, a `Dataset`, a parquet, JSON or JSON Lines file, a folder or a Hub id.
        image_root: folder that relative paths of images and masks start from. Default: the folder of a file as
            `source`, or else the working directory.
        allow_urls: fetch pictures whose path is an `http(s)://` address.
    """
    rows = open_rows(source, split, streaming, revision)
    require_columns(rows, {"image"}, source, ADVICE)
    if image_root is None and isinstance(source, str | os.PathLike) and os.path.isfile(source):
        image_root = Path(source).parent
    return rows, plain_reader(image_root, allow_urls), ()


def plain_reader(image_root: str | os.PathLike | None = None, allow_urls: bool = False) -> Callable[..., ImageSample]:
    """What makes a sample of a row and its number; see [`open_plain_rows`]."""
    return partial(_read_row, Path(image_root or ""), allow_urls)


def _starting_at(root: Path, picture: Any) -> Any:
    """`picture`; if it is a relative path, starting at `root`."""
    path = picture.get("path") if isinstance(picture, Mapping) and picture.get("bytes") is None else picture
    is_file = isinstance(path, os.PathLike) or isinstance(path, str) and is_path(path)
    return root / path if is_file else picture


def _read_row(root: Path, allow_urls: bool, index: int, row: dict) -> ImageSample:
    picture = _starting_at(root, row["image"])
    image_id = row.get("image_id")
    if image_id is None:  # rows about one file are about one image: intervals are over images
        image_id = row["image"] if picture is not row["image"] else index
    image_id = str(image_id.get("path") if isinstance(image_id, Mapping) else image_id)
    name = f"image {shortened(image_id)}"
    entries = row.get("expressions")
    entries = [row] if entries is None else entries
    decode = partial(_decode, root, picture, name, allow_urls)
    sentences = [
        sentence
        for place, entry in enumerate(entries)
        for sentence in _read_entry(entry, f"{index}/{place}", name, decode)
    ]
    return ImageSample(image_id, picture, tuple(sentences), allow_urls)


def _read_entry(
    entry: Mapping, object_id: str, name: str, decode: Callable[[Any], np.ndarray]
) -> list[ReferringSentence]:
    texts = _one_of(entry, TEXT_COLUMNS)
    mask = _one_of(entry, MASK_COLUMNS)
    if texts is None:
        raise ValueError(f"a sentence of {name} is missing")
    ignore = entry.get("ignore")
    details = {key: entry[key] for key in ("kind", "category", "is_sentence") if key in entry}
    return [
        ReferringSentence(
            f"{object_id}/{place}",
            text,
            partial(decode, mask),
            None if ignore is None else partial(decode, ignore),
            object_id,
            details,
        )
        for place, text in enumerate([texts] if isinstance(texts, str) else texts)
    ]


def _one_of(entry: Mapping, names: tuple[str, ...]) -> Any:
    """What is in the column that has something; tables fill columns that a row lacks with `None`."""
    present = [name for name in names if name in entry]
    if not present:
        raise KeyError(f"no column {' or '.join(names)} among {shortened(', '.join(entry))}")
    filled = [name for name in present if entry[name] is not None]
    if len(filled) > 1:
        raise ValueError(f"only one of the columns {' and '.join(filled)} may have a value")
    return entry[filled[0]] if filled else None


def _decode(root: Path, picture: Any, name: str, allow_urls: bool, mask: Any) -> np.ndarray:
    """The mask of whatever a row has; the picture is opened only if its size is needed."""
    if isinstance(mask, Mapping) and "counts" in mask:
        return decode_mask(dict(mask))
    if isinstance(mask, Mapping) and not {"bytes", "path"} & set(mask):
        raise ValueError(f"The mask of {name} must have `counts`, `bytes` or `path`, got {quoted(dict(mask))}.")
    if isinstance(mask, Mapping) and mask.get("bytes") is None:  # a picture, as `datasets` stores it
        mask = mask.get("path")
    if isinstance(mask, str | os.PathLike | Mapping):
        try:
            file = encoded(mask["bytes"]) if isinstance(mask, Mapping) else root / mask
            opened = open_picture(file, f"the mask of {name}")
            if opened.format == "JPEG":  # around an object, what was 0 is not 0 any more
                raise ValueError("a JPEG does not keep the values of a mask. Make it again, and save it as PNG.")
            # As it is: converted to grey, a dark palette would become background.
            mask = np.array(opened)
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"the mask of {name}", str(error)) from error
    width, height = read_picture(picture, name, allow_urls).size
    return decode_segmentation(mask, height, width)
