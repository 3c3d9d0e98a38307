"""`convert_checkpoint`: from sources to a folder that loads."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.renaming import Move, Part, Plan, plan_renaming
from transformers_litelvlm.conversion.report import ConversionReport, make_report, readable
from transformers_litelvlm.conversion.staging import new_folder, sync_folder
from transformers_litelvlm.conversion.writing import ShardedWriter


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class MustEqual:
    """Two tensors that show whether two sources belong together: label of the part, and name in its source."""

    first: tuple[str, str]
    second: tuple[str, str]
    otherwise: str  # what it means that they differ, and the way out; the end of the error message


@dataclass(frozen=True)
class Conversion:
    """What a family of checkpoints knows about its conversion.

    Args:
        family: name of the family, for the report.
        parts: the sources with their rules.
        targets: shape of every parameter and stored buffer of the model.
        write_rest: writes everything but the weights (config.json, processor, model card) into the folder it is given;
            the dtype is the one asked for, `None` for "as stored".
        tied: names in `targets` that are not stored -> the stored name they are the same as.
        must_equal: tensors to compare before anything is written.
    """

    family: str
    parts: list[Part]
    targets: dict[str, tuple[int, ...]]
    write_rest: Callable[[Path, torch.dtype | None], None]
    tied: dict[str, str] = field(default_factory=dict)
    must_equal: list[MustEqual] = field(default_factory=list)


def convert_checkpoint(
    conversion: Conversion,
    target: str | os.PathLike,
    dtype: str = "auto",
    max_shard_size: int | str = "5GB",
    progress: bool = True,
) -> ConversionReport:
    """Write a self-contained checkpoint. Everything that can be checked without the values is checked before.

    At most one file of a source is mapped into memory at a time, and one tensor is in memory beside it. `target`
    appears complete or not at all; see [`new_folder`]. An interrupted conversion starts from the beginning.

    Args:
        conversion: what to convert, and how.
        target: folder that does not exist yet, or is empty.
        dtype: `"float32"`, `"float16"` or `"bfloat16"` for all floating point parameters; `"auto"` leaves each as it
            is stored.
        max_shard_size: largest size of a file of weights.
        progress: whether to show a bar if the output is a terminal.

    Returns:
        The report, also written to `conversion_report.json` in `target`.

    Raises:
        ConversionError: if a source is not what it should be, or the target cannot be written.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConversionError(f"`dtype` must be one of auto, {', '.join(DTYPES)}, got {dtype!r}")
    cast = DTYPES.get(dtype)
    try:
        with new_folder(target) as staging:
            plan = _cast(plan_renaming(conversion.parts, conversion.targets, conversion.tied), cast)
            _check_must_equal(conversion)
            _check_space(staging, plan)
            with ShardedWriter(staging, plan.targets, max_shard_size) as writer:
                _write_weights(writer, plan, progress)
            report = make_report(conversion.family, conversion.parts, plan, writer.file_names)
            _write_rest(conversion, staging, cast, report)
    except OSError as error:
        name = os.path.basename(error.filename) if error.filename else "a file"
        raise ConversionError(
            f"{name} cannot be written for {target}: {error.strerror or error}; nothing is left of this conversion,"
            " so make room or choose another target"
        ) from error
    return report


def _cast(plan: Plan, dtype: torch.dtype | None) -> Plan:
    if dtype is None:
        return plan
    targets = {
        name: dataclasses.replace(info, dtype=dtype) if info.dtype.is_floating_point else info
        for name, info in plan.targets.items()
    }
    return dataclasses.replace(plan, targets=targets)


def _check_must_equal(conversion: Conversion) -> None:
    sources = {part.label: part.source for part in conversion.parts}
    for pair in conversion.must_equal:
        first, second = (sources[label].tensor(name).float() for label, name in (pair.first, pair.second))
        # Copies of the same weights differ by rounding to half precision at most.
        if first.shape != second.shape or not (first - second).abs().max() <= 0.01 * second.abs().max():
            places = " and ".join(f"{name} of {sources[label]}" for label, name in (pair.first, pair.second))
            raise ConversionError(f"{places} differ: {pair.otherwise}")


def _check_space(folder: Path, plan: Plan) -> None:
    needed, free = sum(info.nbytes for info in plan.targets.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise ConversionError(
            f"{folder.parent} has {readable(free)} free, but the weights need {readable(needed)}: make room, choose"
            " another target, or a smaller --dtype"
        )


def _write_weights(writer: ShardedWriter, plan: Plan, progress: bool) -> None:
    """Source file by source file, so that never two are mapped."""
    by_file: dict[tuple[str, Path], dict[str, list[Move]]] = {}
    for move in plan.moves:
        by_file.setdefault((move.part.label, move.info.file), {}).setdefault(move.source, []).append(move)
    total = sum(move.info.nbytes for move in plan.moves)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        for (_, file), moves in by_file.items():
            bar.set_description(file.name)
            source = next(iter(moves.values()))[0].part.source
            for name, tensor in source.load(file, list(moves)):
                for move in moves[name]:
                    if tuple(tensor.shape) != move.info.shape or tensor.dtype != move.info.dtype:
                        raise ConversionError(f"{file}: `{name}` changed during the conversion: start again")
                    try:
                        writer.write(move.target, move.of(tensor), move.row)
                    except ConversionError as error:
                        raise ConversionError(f"{file}: `{name}`: {error}") from error
                    bar.update(move.info.nbytes)
                # The loop variable would hold the last tensor, and with it the file, while the next one is opened.
                del tensor
    writer.finish()


def _write_rest(conversion: Conversion, staging: Path, dtype: torch.dtype | None, report: ConversionReport) -> None:
    """Write everything but the weights; config.json comes last, for nothing loads without it."""
    rest = staging / "rest"
    rest.mkdir()
    try:
        conversion.write_rest(rest, dtype)
    except Exception as error:
        # How libraries written in Rust (tokenizers) report an error of the operating system.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), "the processor or config") from error
    (rest / "conversion_report.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    for path in sorted(rest.iterdir(), key=lambda path: path.name == "config.json"):
        if path.name == "config.json":
            sync_folder(staging)
        os.replace(path, staging / path.name)
    rest.rmdir()
