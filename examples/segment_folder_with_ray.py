"""Masks for a folder of pictures, or a parquet file of pictures and sentences, on one machine or a Ray cluster.

    python examples/segment_folder_with_ray.py pictures "the red circle" "the star" --output masks
    python examples/segment_folder_with_ray.py rows.parquet --output masks --model ./glamm-refseg --budget 64 --gpus 1

Needs `pip install "ray[data]"`. A parquet file has the columns `image` (the path of a file, relative to the folder of
the parquet file, or its content in bytes) and `sentences` (a text, or a list of them). On a cluster, all machines
need this package, and see paths at the same place.

The output is a folder of parquet files, with a row for each picture: `image`, `sentences`, `height`, `width`, and for
each sentence `counts` (run lengths of COCO) and `scores`. A picture that cannot be read has the reason in `error`.
Each file is written as a whole. Started again with the same arguments, the script skips what the folder has.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import pipeline

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.models.auto import config_for_segmentation
from transformers_litelvlm.utils.image_io import load_rgb_image, open_picture


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SETTINGS_FILE = "settings.json"
UNFINISHED = ".litelvlm-unfinished"
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("sentences", pa.list_(pa.string())),
        ("key", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("counts", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("error", pa.string()),
    ]
)


class Segment:
    """Loads the model once in each worker.

    Args:
        settings: keywords of the pipeline.
        base: folder that relative paths start from.
    """

    def __init__(self, settings: dict[str, Any], base: str) -> None:
        self.segmenter, self.base = pipeline("referring-segmentation", **settings), base

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows with `image` and `sentences` as rows of the output; a picture alone, so that others change nothing."""
        return pa.Table.from_pylist([self.row(row) for row in batch.to_pylist()], SCHEMA)

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row of the output."""
        known = {"image": name_of(row["image"]), "sentences": sentences_of(row), "key": key_of(row)}
        try:
            picture = load_picture(row["image"], self.base)
            found = self.segmenter(picture, known["sentences"])
        except ValueError as error:  # the picture or a sentence is refused
            return {**known, "error": str(error)}
        masks = [encode_mask(np.asarray(each["mask"]) > 0) for each in found]
        return {
            **known,
            "height": picture.height,
            "width": picture.width,
            "counts": [mask["counts"] for mask in masks],
            "scores": [each["score"] for each in found],
        }


def load_picture(image: str | bytes | dict[str, Any] | None, base: str) -> Image.Image:
    """A picture of a row. Raises ValueError if it cannot be read."""
    if isinstance(image, dict):  # as the library datasets writes pictures
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return load_rgb_image(open_picture(io.BytesIO(image), name_of(image)))
    if not isinstance(image, str):
        raise ValueError(f"`image` must be a path or the bytes of a file, got {type(image).__name__}.")
    return load_rgb_image(Path(base) / image)


def name_of(image: Any) -> str:
    """The path of a picture, or the hash of its bytes."""
    if isinstance(image, dict):
        image = image.get("path") or image.get("bytes")
    return image if isinstance(image, str) else f"sha256:{hashlib.sha256(image or b'').hexdigest()}"


def sentences_of(row: dict[str, Any]) -> list[str]:
    """One sentence or several, as a list."""
    sentences = row["sentences"]
    return [sentences] if isinstance(sentences, str) else list(sentences)


def key_of(row: dict[str, Any]) -> str:
    """What a row of the output answers: the picture and the sentences."""
    asked = json.dumps([name_of(row["image"]), sentences_of(row)])
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()


def read_done(output: Path) -> set[str]:
    """Keys of what the output has."""
    parts = sorted(output.glob("part-*.parquet"))
    return {key for part in parts for key in pq.read_table(part, columns=["key"])["key"].to_pylist()}


def write_part(rows: pa.Table, output: Path) -> None:
    """A file with rows; under its name there is all of it, or nothing."""
    part = output / f"part-{uuid.uuid4().hex}.parquet"
    unfinished = part.with_suffix(UNFINISHED)
    pq.write_table(rows, unfinished)
    with open(unfinished, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, part)


def open_output(output: Path, settings: dict[str, Any]) -> set[str]:
    """Make the folder, or go on with it; gives the keys of what it has.

    Raises:
        SystemExit: it was made with other settings, or is no folder of this script.
    """
    told, file = json.dumps(settings, indent=2, sort_keys=True), output / SETTINGS_FILE
    if file.is_file() and file.read_text(encoding="utf-8") != told:
        stop(f"--output {output}: {SETTINGS_FILE} there has other settings: give those, or another folder")
    others = [] if not output.is_dir() else [path for path in output.iterdir() if path.suffix != UNFINISHED]
    if not file.is_file() and (others or (output.exists() and not output.is_dir())):
        stop(f"--output {output}: it is no folder that this script made: give a new one")
    for unfinished in output.glob(f"*{UNFINISHED}"):  # of a run that was killed
        unfinished.unlink()
    if not file.is_file():
        output.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(UNFINISHED)
        unfinished.write_text(told, encoding="utf-8")
        os.replace(unfinished, file)
    return read_done(output)


def find_rows(source: Path, sentences: list[str]) -> list[dict[str, Any]] | None:
    """The rows of a folder of pictures; `None` for a parquet file, which is read later.

    Raises:
        SystemExit: there is nothing to segment, or sentences are missing or given twice.
    """
    if source.is_dir():
        if not sentences:
            stop("a folder of pictures needs sentences: give them after it")
        files = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not files:
            stop(f"{source}: there are no pictures ({', '.join(SUFFIXES)}) in it")
        return [{"image": path.relative_to(source).as_posix(), "sentences": sentences} for path in files]
    if not source.is_file():
        stop(f"{source}: there is no such folder and no such file")
    if sentences:
        stop(f"{source} is no folder, and a parquet file has the sentences: give none")
    try:
        columns = pq.read_schema(source).names
    except (OSError, pa.ArrowException) as error:
        stop(f"{source}: it cannot be read as parquet: {' '.join(str(error).split())}")
    if missing := {"image", "sentences"} - set(columns):
        stop(f"{source}: it has no column {' and no column '.join(sorted(missing))}, but {', '.join(columns)}")
    return None


def check_model(settings: dict[str, Any]) -> None:
    """Raises SystemExit if there is no such model, or it cannot follow the settings; no worker has to start first."""
    pruning = {name: value for name, value in settings.items() if name.startswith("pruning_")}
    try:
        config_for_segmentation(settings["model"], settings.get("mask_model")).set_pruning(**pruning)
    except (OSError, ValueError) as error:
        stop(f"--model {settings['model']}: {error}")


def new_rows(batch: pa.Table, done: set[str]) -> pa.Table:
    """The rows that the output does not have."""
    return batch.filter(pa.array([key_of(row) not in done for row in batch.to_pylist()], pa.bool_()))


def segment_all(
    args: argparse.Namespace, rows: list[dict[str, Any]] | None, done: set[str], settings: dict[str, Any]
) -> Iterator[pa.Table]:
    """Rows of the output that it does not have yet, a part at a time."""
    import ray

    source, columns = args.source.resolve(), ["image", "sentences"]
    data = ray.data.read_parquet(str(source), columns=columns) if rows is None else ray.data.from_items(rows)
    data = data.map_batches(new_rows, batch_format="pyarrow", fn_kwargs={"done": done})
    data = data.repartition(target_num_rows_per_block=args.rows_per_part)
    data = data.map_batches(
        Segment,
        fn_constructor_args=(settings, str(source.parent if rows is None else source)),
        batch_format="pyarrow",
        batch_size=args.rows_per_part,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_gpus=args.gpus,
        num_cpus=args.cpus,
    )
    yield from data.iter_batches(batch_format="pyarrow", batch_size=args.rows_per_part)


def stop(message: str) -> Any:
    """End with 2, as bad input does."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_arguments(argv: Iterable[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of pictures, or parquet file")
    parser.add_argument("sentences", nargs="*", help="what to find in each picture of a folder")
    parser.add_argument("--output", type=Path, required=True, help="folder, new or of a run that was interrupted")
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="folder or Hub name (default: the bundled one)")
    parser.add_argument("--mask-model", help="SAM or SAM 2, for a model that answers with boxes")
    parser.add_argument("--preset", help='a named setting, such as "balanced" (default: that of the checkpoint)')
    parser.add_argument("--budget", type=_positive, help="visual tokens to keep")
    parser.add_argument("--workers", type=_positive, default=1, help="models that work at a time")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker, also a fraction of one")
    parser.add_argument("--cpus", type=float, default=1, help="cores of each worker")
    parser.add_argument("--rows-per-part", type=_positive, default=64, help="rows of an output file")
    parser.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else this machine alone)")
    return parser.parse_args(argv)


def _told(model: str) -> str:
    """A model's name in the settings; the bundled one is at another place on each machine."""
    return "bundled" if model == DEFAULT_CHECKPOINT else model


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def main() -> int:
    """Segment what is missing, and say how much it was."""
    args = parse_arguments()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        stop('ray is not installed: pip install "ray[data]"')
    given = {"pruning_preset": args.preset, "pruning_budget": args.budget, "mask_model": args.mask_model}
    settings = {"model": args.model, **{name: value for name, value in given.items() if value is not None}}
    rows = find_rows(args.source, args.sentences)
    check_model(settings)
    done = open_output(args.output, {**settings, "model": _told(args.model)})
    ray.init(address=args.address, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    finished = refused = 0
    for part in segment_all(args, rows, done, {**settings, "device": "cuda" if args.gpus else "cpu"}):
        write_part(part, args.output)
        finished, refused = finished + len(part), refused + len(part) - part["error"].null_count
        print(f"{finished} pictures", flush=True)
    print(f"{finished} pictures done, {len(done)} were there before, {refused} were refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
