"""The original layout of the RefCOCO family, as the `refer` toolbox, LISA, GLaMM and LiteLVLM have it on disk."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from transformers_litelvlm.data.masks import decode_segmentation
from transformers_litelvlm.data.restricted_pickle import load_plain_pickle
from transformers_litelvlm.data.samples import ImageSample, ReferringSentence


SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
# LISA and Seg-Zero; GLaMM and LiteLVLM, whose pictures are beside `Refer_Segm`; everybody else.
IMAGE_FOLDERS = (
    "images/mscoco/images/train2014",
    "coco_2014/train2014",
    "../coco_2014/train2014",
    "coco/train2014",
    "train2014",
)


def find_refs_file(root: Path, name: str, split_by: str | None = None) -> Path | None:
    """`refs(<split_by>).p` of a data set, any of them if `split_by` is `None`; `None` if there is none."""
    for folder in (root / name, root):
        found = sorted(folder.glob(f"refs({split_by or '*'}).p")) if folder.is_dir() else []
        if found:
            return found[0]
    return None


def open_refer(
    name: str,
    root: str | os.PathLike,
    split: str,
    image_root: str | os.PathLike | None = None,
    split_by: str | None = None,
) -> tuple[list, Any, tuple[str, ...]]:
    """
    Rows and reader of a folder with `<name>/refs(<split_by>).p`, `<name>/instances.json` and COCO's train2014.

    The references are a pickle, which is read without running anything in it.

    Args:
        name (`str`): `"refcoco"`, `"refcoco+"` or `"refcocog"`.
        root (`str` or `os.PathLike`): The folder that holds `<name>`, or that folder itself.
        split (`str`): `"train"`, `"val"`, `"testA"`, ...
        image_root (`str` or `os.PathLike`, *optional*): Folder of the pictures, if it is not one of the usual.
        split_by (`str`, *optional*): Defaults to `"unc"`, and `"umd"` for RefCOCOg.

    Returns:
        Rows (per image its record, annotations and refs), the function that reads one, and notes.

    Raises:
        FileNotFoundError: No references of that division, no folder of pictures; says what there is.
        RefusedPickleError: The references want to run something.
        ValueError: No reference of that split; lists the splits.
    """
    split_by = split_by or SPLIT_BY[name]
    path = find_refs_file(Path(root), name, split_by)
    if path is None:
        other = find_refs_file(Path(root), name)
        raise FileNotFoundError(
            f"{root} has no `refs({split_by}).p`, only `{other.name}`. Name another division with `split_by`."
        )
    pictures = _picture_folder(Path(root), path.parent, image_root)
    refs = load_plain_pickle(path)
    instances = _load_instances(path.parent / "instances.json")
    images = {entry["id"]: entry for entry in instances["images"]}
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    groups: dict[int, list[dict]] = {}
    try:
        for ref in refs:
            if ref["split"] == split:
                groups.setdefault(ref["image_id"], []).append(ref)
        rows = [
            (images[number], pictures, [(ref, annotations[ref["ann_id"]]) for ref in group])
            for number, group in groups.items()
        ]
        found = ", ".join(sorted({ref["split"] for ref in refs}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} and its instances.json do not fit: {type(error).__name__}: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no reference of split {split!r}. It has: {found}.")
    notes = () if split_by == SPLIT_BY[name] else (f"division `{split_by}`, not the usual `{SPLIT_BY[name]}`",)
    return rows, _read_image, notes


def _load_instances(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def _picture_folder(root: Path, folder: Path, image_root: str | os.PathLike | None) -> Path:
    if image_root is not None:
        return Path(image_root)
    tried = [base / name for base in (root, folder.parent) for name in IMAGE_FOLDERS]
    for candidate in tried:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"No COCO train2014 pictures in {root}, looked for {IMAGE_FOLDERS}. Give `image_root`.")


def ref_sentences(ref: dict, segmentation: Any, height: int, width: int) -> list[ReferringSentence]:
    """
    The sentences of one ref, which all share its mask.

    Args:
        ref (`dict`): In the form of the `refer` toolbox: `ref_id` and `sentences` of `sent` and `sent_id`.
        segmentation: The annotation of its object.
        height (`int`): Pixels of the image.
        width (`int`): Pixels of the image.
    """
    load_mask = partial(decode_segmentation, segmentation, height, width)
    return [
        ReferringSentence(
            f"{ref['ref_id']}/{entry['sent_id']}", entry["sent"], load_mask, object_id=str(ref["ref_id"])
        )
        for entry in ref["sentences"]
    ]


def _read_image(index: int, row: tuple) -> ImageSample:
    record, pictures, pairs = row
    sentences = [
        sentence
        for ref, annotation in pairs
        for sentence in ref_sentences(ref, annotation["segmentation"], record["height"], record["width"])
    ]
    return ImageSample(str(record["id"]), str(pictures / record["file_name"]), tuple(sentences))
