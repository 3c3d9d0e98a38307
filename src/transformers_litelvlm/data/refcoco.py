"""The RefCOCO family: the original `refer` folder; jxu124/refcoco-benchmark; jxu124/refcoco; refcoco-m."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from transformers_litelvlm.data.hub_rows import open_rows, require_columns
from transformers_litelvlm.data.masks import decode_mask, decode_segmentation
from transformers_litelvlm.data.restricted_pickle import load_plain_pickle
from transformers_litelvlm.data.samples import ImageSample, ReferringSentence
from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.files import read_json


SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
# In jxu124/refcoco-benchmark all three sets are splits of one data set.
BENCHMARK_SPLITS = {"refcoco": "refcoco_unc_{}", "refcoco+": "refcoco_plus_unc_{}", "refcocog": "refcocog_umd_{}"}
PLAIN_SPLITS = {"val": "validation", "testA": "test"}  # of jxu124/refcoco and its like, which have no pictures
# LISA and Seg-Zero; GLaMM and LiteLVLM, whose pictures are beside `Refer_Segm`; everybody else.
IMAGE_FOLDERS = (
    "images/mscoco/images/train2014",
    "coco_2014/train2014",
    "../coco_2014/train2014",
    "coco/train2014",
    "train2014",
)
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
        source: a folder in the original `refer` layout (`<name>/refs(<split_by>).p`, `<name>/instances.json` and
            COCO's train2014), or its `<name>`; or a Hub id, folder or parquet file in the schema of
            jxu124/refcoco-benchmark, or of jxu124/refcoco (then with `image_root`). From a single file of either
            schema, the rows of the split are taken.
        image_root: folder of the COCO train2014 pictures, if it is not one of the usual.
        split_by: for the `refer` layout, which division: `"unc"`, `"umd"` or `"google"`. Defaults to `"unc"`, and
            `"umd"` for RefCOCOg.

    Raises:
        FileNotFoundError: no references of that division, no folder of pictures; says what there is.
        RefusedPickleError: the references want to run something.
        ValueError: another schema, or no sentence of that split; says what there is.
    """
    if isinstance(source, str | os.PathLike) and _find_refs_file(Path(source), name, "*") is not None:
        return _open_refer(name, Path(source), split, image_root, split_by or SPLIT_BY[name])
    if split_by is not None:
        raise ValueError(f"`split_by` is for the original `refer` layout, which {source} does not have.")
    named = BENCHMARK_SPLITS[name].format(split) if image_root is None else PLAIN_SPLITS.get(split, split)
    rows = open_rows(source, named, streaming, revision)
    columns = set(getattr(rows, "column_names", None) or ())
    if "raw_anns" in columns:
        if image_root is None:
            raise ValueError(
                f"{source} has no pictures. Give `image_root`, the folder of the COCO train2014 pictures."
            )
        # Small enough to hold, as there are no pictures in it.
        return _group_by_image(rows, split, source), partial(_read_objects, Path(image_root)), ()
    require_columns(rows, {"image", "image_info", "ref_list"}, source, ADVICE)
    if Path(str(source)).suffix == ".parquet":
        return _rows_of_split(rows, split, source), partial(_read_benchmark_row, split), ()
    return rows, partial(_read_benchmark_row, None), ()


def open_refcoco_m(
    name: str, source: Any, split: str, streaming: bool = False, revision: str | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    """Rows and reader of moondream/refcoco-m: RefCOCO's validation images with masks drawn anew."""
    rows = open_rows(source, split, streaming, revision)
    require_columns(rows, {"image", "image_id", "samples"}, source, "Take moondream/refcoco-m.")
    note = "refcoco-m has masks of its own: its numbers cannot be compared with published ones of RefCOCO"
    return rows, _read_refcoco_m_row, (note,)


def _open_refer(
    name: str, root: Path, split: str, image_root: str | os.PathLike | None, split_by: str
) -> tuple[list, Any, tuple[str, ...]]:
    """The layout that the `refer` toolbox, LISA, GLaMM and LiteLVLM have on disk."""
    path = _find_refs_file(root, name, split_by)
    if path is None:
        other = _find_refs_file(root, name, "*")
        raise FileNotFoundError(
            f"{root} has no `refs({split_by}).p`, only `{other.name}`. Name another division with `split_by`."
        )
    tried = [base / folder for base in (root, path.parent.parent) for folder in IMAGE_FOLDERS]
    pictures = next(filter(Path.is_dir, tried), None) if image_root is None else Path(image_root)
    if pictures is None:
        raise FileNotFoundError(
            f"No COCO train2014 pictures in {root}, looked for {IMAGE_FOLDERS}. Give `image_root`."
        )
    refs = load_plain_pickle(path)
    instances = read_json(path.parent / "instances.json")
    try:
        images = {entry["id"]: entry for entry in instances["images"]}
        segmentations = {entry["id"]: entry["segmentation"] for entry in instances["annotations"]}
        rows = [
            (images[group[0]["image_id"]], [(ref, segmentations[ref["ann_id"]]) for ref in group])
            for group in _group_by_image(refs, split, path)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} and its instances.json do not fit: {type(error).__name__}: {error}") from error
    notes = () if split_by == SPLIT_BY[name] else (f"division `{split_by}`, not the usual `{SPLIT_BY[name]}`",)
    return rows, partial(_read_refer_row, pictures), notes


def _find_refs_file(root: Path, name: str, split_by: str) -> Path | None:
    """`refs(<split_by>).p` of a data set, the first that fits; `None` if there is none."""
    found = [path for folder in (root / name, root) for path in sorted(folder.glob(f"refs({split_by}).p"))]
    return found[0] if found else None


def _group_by_image(refs: Iterable[dict], split: str, source: Any) -> list[list[dict]]:
    """The refs of a split, those of an image together."""
    groups: dict[int, list[dict]] = {}
    found = set()
    for ref in refs:
        found.add(ref["split"])
        if ref["split"] == split:
            groups.setdefault(ref["image_id"], []).append(ref)
    if not groups:
        raise ValueError(f"{source} has no reference of split {split!r}. It has: {', '.join(sorted(found))}.")
    return list(groups.values())


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


def _sample(image_id: int, image: Any, info: dict, refs: Iterable[tuple[dict, Any]]) -> ImageSample:
    """An image with the sentences of its refs.

    Args:
        image_id, image: its number, and where the picture is.
        info: `height` and `width` in pixels.
        refs: in the form of the `refer` toolbox, `ref_id` and `sentences` of `sent` and `sent_id`, which all share the
            mask of an object; with its annotation.
    """
    sentences = []
    for ref, segmentation in refs:
        object_id = str(ref["ref_id"])
        load_mask = partial(decode_segmentation, segmentation, info["height"], info["width"])
        sentences += [
            ReferringSentence(f"{object_id}/{entry['sent_id']}", entry["sent"], load_mask, object_id=object_id)
            for entry in ref["sentences"]
        ]
    return ImageSample(str(image_id), image, tuple(sentences))


def _read_refer_row(pictures: Path, index: int, row: tuple[dict, list]) -> ImageSample:
    info, refs = row
    return _sample(info["id"], str(pictures / info["file_name"]), info, refs)


def _read_benchmark_row(split: str | None, index: int, row: dict) -> ImageSample:
    listed = [ref for ref in row["ref_list"] if split in (None, ref["ref_info"]["split"])]
    refs = [(ref["ref_info"], ref["ann_info"]["segmentation"]) for ref in listed]
    return _sample(row["image_info"]["id"], row["image"], row["image_info"], refs)


def _read_objects(pictures: Path, index: int, rows: list[dict]) -> ImageSample:
    first = rows[0]
    refs = [(ref, json.loads(ref["raw_anns"])["segmentation"]) for ref in rows]
    path = pictures / Path(first["image_path"]).name
    return _sample(first["image_id"], str(path), json.loads(first["raw_image_info"]), refs)


def _read_refcoco_m_row(index: int, row: dict) -> ImageSample:
    sentences = [
        ReferringSentence(
            f"{item['id']}/{place}", sentence, partial(decode_mask, item["mask"]), object_id=str(item["id"])
        )
        for item in row["samples"]
        for place, sentence in enumerate(item["sentences"])
    ]
    return ImageSample(str(row["image_id"]), row["image"], tuple(sentences))
