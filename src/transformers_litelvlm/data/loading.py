"""Every data set under its name: `load_split("refcoco", "val")`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

from transformers_litelvlm.data.plain_rows import open_plain_rows, plain_reader
from transformers_litelvlm.data.reason_seg import open_reason_seg
from transformers_litelvlm.data.refcoco import open_refcoco, open_refcoco_m
from transformers_litelvlm.data.referring_video import open_mevis, open_referring_video
from transformers_litelvlm.data.refshapes import DEFAULT_NUM_SCENES, SceneRows
from transformers_litelvlm.data.splits import ReferringSplit, SplitCounts


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DatasetInfo:
    """How a data set is opened.

    Args:
        open: given what the data set is called, its source and split, and options, returns rows, the function that
            reads one, and notes. Options that many have: `streaming`, to read while iterating; `revision`, a version
            on the Hub.
        splits: its splits and their published sizes, one per version; empty if any name will do.
        source: Hub id that is read if no source is given.
        source_needed: whether a missing source is an error if there is no default.
    """

    open: Callable[..., tuple[Any, Any, tuple[str, ...]]]
    splits: dict[str, tuple[SplitCounts, ...]]
    source: str | None = None
    source_needed: bool = True


def _open_refshapes(name: str, source: Any, split: str, **options: Any) -> tuple[Any, Any, tuple[str, ...]]:
    if source is not None:
        raise ValueError(f"RefShapes is generated: `source` must be None, got {source!r}.")
    return SceneRows(split, **options), plain_reader(), ()


BENCHMARK = "jxu124/refcoco-benchmark"
# Counted in the official files, as far as those could be had; see docs/data.md.
DATASETS = {
    "refcoco": DatasetInfo(
        open_refcoco,
        {
            "train": (SplitCounts(16994, 42404, 120624),),
            "val": (SplitCounts(1500, 3811, 10834),),
            "testA": (SplitCounts(750, 1975, 5657),),
            "testB": (SplitCounts(750, 1810, 5095),),
        },
        BENCHMARK,
    ),
    "refcoco+": DatasetInfo(
        open_refcoco,
        {
            "train": (SplitCounts(16992, 42278),),
            "val": (SplitCounts(1500, 3805, 10758),),
            "testA": (SplitCounts(750, 1975, 5726),),
            "testB": (SplitCounts(750, 1798, 4889),),
        },
        BENCHMARK,
    ),
    "refcocog": DatasetInfo(
        open_refcoco,
        {
            "train": (SplitCounts(21899, 42226),),
            "val": (SplitCounts(1300, 2573, 4896),),
            "test": (SplitCounts(2600, 5023, 9602),),
        },
        BENCHMARK,
    ),
    "refcoco-m": DatasetInfo(open_refcoco_m, {"validation": (SplitCounts(1190, 2080, 5598),)}, "moondream/refcoco-m"),
    "reasonseg": DatasetInfo(
        open_reason_seg,
        {
            "train": (SplitCounts(239),),
            "val": (SplitCounts(200, None, 200),),
            "test": (SplitCounts(779, None, 779),),
        },
        source_needed=False,
    ),
    "refer-youtube-vos": DatasetInfo(open_referring_video, {"train": (), "valid": (SplitCounts(202),), "test": ()}),
    "ref-davis17": DatasetInfo(open_referring_video, {"train": (), "valid": (SplitCounts(30),)}),
    "mevis": DatasetInfo(
        open_mevis,
        {
            "train": (),
            # The first version, and MeViSv2.
            "valid_u": (SplitCounts(50, None, 793), SplitCounts(50, None, 907)),
            "valid": (SplitCounts(140),),
        },
    ),
    "refshapes": DatasetInfo(
        _open_refshapes, {name: (SplitCounts(size),) for name, size in DEFAULT_NUM_SCENES.items()}, source_needed=False
    ),
    "rows": DatasetInfo(open_plain_rows, {}),
}


def load_split(
    name: str, split: str, source: Any = None, *, require_official_counts: bool = False, **options: Any
) -> ReferringSplit:
    """Open a split of a data set for referring segmentation.

    Args:
        name: one of `DATASETS`: `"refcoco"`, `"refcoco+"`, `"refcocog"`, `"refcoco-m"`, `"reasonseg"`,
            `"refer-youtube-vos"`, `"ref-davis17"`, `"mevis"`, `"refshapes"`, or `"rows"` for your own data.
        split: name of the split, as the data set's papers have it.
        source: a folder, file or Hub id, in any layout the set comes in; for `"rows"` also a list of dicts or a
            `datasets.Dataset`. Defaults to the set's copy on the Hub, if there is one.
        require_official_counts: read the split once, without decoding pixels, and raise unless it has its official
            size. Otherwise call `check_counts()` on what is returned.
        options: of the reader: `streaming`, `revision` (sets on the Hub), `image_root`, `split_by` (RefCOCO family),
            `annotation_root` (videos), `allow_urls` (rows), `num_scenes` and others (RefShapes).

    Returns:
        Its samples are `ImageSample` or `VideoSample`. Nothing but annotations is in memory.

    Raises:
        FileNotFoundError: the source, or a part of it, does not exist.
        OSError: the Hub cannot be asked for it.
        ValueError: unknown name or split (lists what there is), a damaged source, or not the official size.

    Example:
        >>> scenes = load_split("refshapes", "test", num_scenes=2)
        >>> sample = scenes[0]
        >>> sample.sentences[0].mask.shape == sample.load_image().size[::-1]
        True
    """
    if name not in DATASETS:
        raise ValueError(f"`name` must be one of {', '.join(sorted(DATASETS))}, got {name!r}.")
    info = DATASETS[name]
    if info.splits and split not in info.splits:
        raise ValueError(f"`split` of {name} must be one of {', '.join(info.splits)}, got {split!r}.")
    source = info.source if source is None else source
    if source is None and info.source_needed:
        raise ValueError(f"{name} is not read from the Hub. Give `source`, the folder or file that holds it.")
    try:
        rows, read, notes = info.open(name, source, split, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"`options` of {name}: {str(error).rpartition('() ')[2]}.") from error
    shown = os.fspath(source) if isinstance(source, str | os.PathLike) else name
    opened = ReferringSplit(name, split, shown, rows, read, info.splits.get(split, ()), notes)
    if require_official_counts:
        report = opened.check_counts()
        report.require()
        logger.info(str(report))
    return opened
