"""The RefCOCO family: `jxu124/refcoco-benchmark`, one row per image; `jxu124/refcoco`, one per object; refcoco-m."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from transformers_litelvlm.data.hub_rows import open_rows, require_columns
from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.refer import find_refs_file, open_refer, ref_sentences
from transformers_litelvlm.data.samples import ImageSample, ReferringSentence
from transformers_litelvlm.utils.extras import needs_extra


# In jxu124/refcoco-benchmark all three sets are splits of one data set.
BENCHMARK_SPLITS = {"refcoco": "refcoco_unc_{}", "refcoco+": "refcoco_plus_unc_{}", "refcocog": "refcocog_umd_{}"}
ADVICE = (
    "Take jxu124/refcoco-benchmark or the original `refer` folder. The schema of lmms-lab/RefCOCO is not read: its"
    " validation split mixes two protocols, and of an object in several parts it keeps one polygon."
)


def open_refcoco(
    name: str,
    source: Any,
    split: str,
    streaming: bool = False,
    image_root: str | os.PathLike | None = None,
    split_by: str | None = None,
    revision: str | None = None,
) -> tuple[Any, Any, tuple[str, ...]]:
    """Rows and reader of RefCOCO, RefCOCO+ or RefCOCOg, whatever layout the source has.

    Args:
        source: a folder in the original `refer` layout; or a Hub id, folder or parquet file in the schema of
            jxu124/refcoco-benchmark, or of jxu124/refcoco (then with `image_root`). From a single file of either
            schema, the rows of the split are taken.
        image_root: folder of the COCO train2014 pictures.
        split_by: for the `refer` layout, which division: `"unc"`, `"umd"` or `"google"`. Defaults to the one papers
            use.

    Raises:
        ValueError: another schema, or no sentence of that split; says what there is.
    """
    if isinstance(source, str | os.PathLike) and find_refs_file(Path(source), name) is not None:
        return open_refer(name, source, split, image_root, split_by)
    if split_by is not None:
        raise ValueError(f"`split_by` is for the original `refer` layout, which {source} does not have.")
    rows = open_rows(source, BENCHMARK_SPLITS[name].format(split), streaming, revision)
    columns = set(getattr(rows, "column_names", None) or ())
    if "raw_anns" in columns:
        return _group_by_image(rows, split, image_root, source), _read_refs, ()
    require_columns(rows, {"image", "image_info", "ref_list"}, source, ADVICE)
    if Path(str(source)).suffix == ".parquet":
        rows = _rows_of_split(rows, split, source)
    return rows, _read_benchmark_row, ()


def open_refcoco_m(
    name: str, source: Any, split: str, streaming: bool = False, revision: str | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    """Rows and reader of moondream/refcoco-m: RefCOCO's validation images with masks drawn anew."""
    rows = open_rows(source, split, streaming, revision)
    require_columns(rows, {"image", "image_id", "samples"}, source, "Take moondream/refcoco-m.")
    note = "refcoco-m has masks of its own: its numbers cannot be compared with published ones of RefCOCO"
    return rows, _read_refcoco_m_row, (note,)


def _rows_of_split(rows: Any, split: str, source: Any) -> Any:
    """The rows of a single file that belong to a split; the pictures are not read to find them."""
    with needs_extra("eval", "A parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        splits = [
            {ref["ref_info"]["split"] for ref in refs or ()}
            for batch in pq.ParquetFile(source).iter_batches(columns=["ref_list"])
            for refs in batch.column("ref_list").to_pylist()
        ]
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise ValueError(f"{source} cannot be read: {type(error).__name__}: {error}") from error
    chosen = [index for index, here in enumerate(splits) if split in here]
    if not chosen:
        found = ", ".join(sorted(set().union(*splits)))
        raise ValueError(f"{source} has no row of split {split!r}. It has: {found}.")
    if hasattr(rows, "select"):
        return rows.select(chosen)
    wanted = set(chosen)
    return rows.filter(lambda row, index: index in wanted, with_indices=True)


def _read_benchmark_row(index: int, row: dict) -> ImageSample:
    info = row["image_info"]
    sentences = [
        entry
        for ref in row["ref_list"]
        for entry in ref_sentences(ref["ref_info"], ref["ann_info"]["segmentation"], info["height"], info["width"])
    ]
    return ImageSample(str(info["id"]), row["image"], tuple(sentences))


def _group_by_image(rows: Any, split: str, image_root: str | os.PathLike | None, source: Any) -> list[list[dict]]:
    """The refs of jxu124/refcoco by image; small enough to hold, as there are no pictures in it."""
    if image_root is None:
        raise ValueError(f"{source} has no pictures. Give `image_root`, the folder of the COCO train2014 pictures.")
    groups: dict[int, list[dict]] = {}
    found = set()
    for row in rows:
        found.add(row["split"])
        if row["split"] == split:
            path = str(Path(image_root) / Path(row["image_path"]).name)
            groups.setdefault(row["image_id"], []).append({**row, "image_path": path})
    if not groups:
        raise ValueError(f"{source} has no row of split {split!r}. It has: {', '.join(sorted(found))}.")
    return list(groups.values())


def _read_refs(index: int, refs: list[dict]) -> ImageSample:
    info = json.loads(refs[0]["raw_image_info"])
    sentences = [
        entry
        for ref in refs
        for entry in ref_sentences(ref, json.loads(ref["raw_anns"])["segmentation"], info["height"], info["width"])
    ]
    return ImageSample(str(refs[0]["image_id"]), refs[0]["image_path"], tuple(sentences))


def _read_refcoco_m_row(index: int, row: dict) -> ImageSample:
    sentences = [
        ReferringSentence(
            f"{item['id']}/{place}", sentence, partial(decode_mask, item["mask"]), object_id=str(item["id"])
        )
        for item in row["samples"]
        for place, sentence in enumerate(item["sentences"])
    ]
    return ImageSample(str(row["image_id"]), row["image"], tuple(sentences))
