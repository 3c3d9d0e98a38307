"""Records of an evaluation on disk: one file per batch, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.files import finish_interrupted, write_atomically


with needs_extra("eval", "An evaluation"):
    import pyarrow as pa


SETTINGS_NAME = "settings.json"
BATCHES_NAME = "batches"


class OtherConfigurationError(ValueError):
    """The folder holds results of another configuration."""


class RecordStore:
    """The files of one evaluation, in the folder of its results.

    A batch is written when all its runs are done, and a file appears whole or not at all (it is renamed into place).
    So a file that exists is a batch that is done, whoever did it and whenever.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._digest: str | None = None

    def claim(self, settings: dict[str, Any]) -> None:
        """Make the folder that of a configuration, or check that it is: everything that results depend on, as JSON.
        Raises OtherConfigurationError if it belongs to another one; names what differs."""
        path = self.folder / SETTINGS_NAME
        settings = json.loads(json.dumps(settings))
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        for folder in (self.folder, self.folder / BATCHES_NAME):
            if folder.is_dir():
                finish_interrupted(folder)
        if self.done() and not path.exists():
            raise OtherConfigurationError(
                f"{self.folder} holds batches, but no {SETTINGS_NAME} that says of what. Choose another folder, "
                f"or delete {self.folder / BATCHES_NAME}."
            )
        if not path.exists():
            with space_needed(self.folder), write_atomically(self.folder) as staging:
                (staging / SETTINGS_NAME).write_text(json.dumps(settings, indent=1), encoding="utf-8")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise OtherConfigurationError(f"{path} is not readable ({error}): choose another folder.") from error
        differences = _differences(found, settings)
        if differences:
            raise OtherConfigurationError(
                f"{self.folder} holds results of another configuration: {'; '.join(differences)}. Choose another "
                "folder, or delete that one."
            )

    def write(self, batch: int, content: dict[str, Any]) -> None:
        """Save a batch: `rows` in the order of the task's schema, and whatever else belongs to it. Raises OSError if
        no space is left; what was saved before is kept."""
        path = self._path(batch)
        with space_needed(self.folder), write_atomically(path.parent) as staging:
            content = {"settings": self._digest, **content}
            (staging / path.name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")

    def done(self) -> set[int]:
        """Numbers of the batches that are saved."""
        folder = self.folder / BATCHES_NAME
        found = [re.fullmatch(r"(\d+)\.json", name) for name in (os.listdir(folder) if folder.exists() else [])]
        return {int(match.group(1)) for match in found if match}

    def read(
        self, num_batches: int, check: Callable[[dict[str, Any]], None] = lambda batch: None, first: int = 0
    ) -> Iterator[dict[str, Any]]:
        """All batches in order, from number `first` on.

        Args:
            num_batches: how many there are.
            check: raises an error if the content of a batch is not as it was written.

        Raises:
            ValueError: one is missing, damaged, or of other settings; names its file.
        """
        for batch in range(first, num_batches):
            path = self._path(batch)
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["settings"] != self._digest:
                    raise ValueError(f"it was made with other settings than those in {SETTINGS_NAME}")
                check(content)
            except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{path} is missing or damaged ({error!s:.300}). Delete it if it is there, and start the same "
                    "evaluation again: it makes this file and uses the others. On several machines, `output_dir` must "
                    "be a folder that all of them see."
                ) from error
            yield content

    def _path(self, batch: int) -> Path:
        return self.folder / BATCHES_NAME / f"{batch:06d}.json"


def check_batch(batch: dict[str, Any], schema: pa.Schema, questions_of: dict[str, Any], asks_all: bool) -> None:
    """Raises an error unless a batch, see [`Measured`], can be what measuring it gave.

    Args:
        schema: of its rows.
        questions_of: of every run, what the choice of its sentences depends on.
        asks_all: every sentence is asked, and once.
    """
    asked: dict[str, list[Any]] = {run_id: [] for run_id in questions_of}
    for number, row in enumerate(batch["rows"]):
        record = dict(zip(schema.names, row, strict=True))
        for name, kind in zip(schema.names, schema.types, strict=True):
            if not _can_be(record[name], kind):
                raise ValueError(f"`{name}` of record {number} is {record[name]!r:.80}")
        if "union" in record and not _is_iou(record):
            raise ValueError(f"the numbers of record {number} contradict each other: {row[4:]}")
        asked[record["run_id"]].append(row[1:3])
    for run_id, sentences in asked.items():
        first = next(other for other in asked if questions_of[other] == questions_of[run_id])
        if sentences != asked[first] or len(sentences) != len(next(iter(asked.values()))):
            raise ValueError(f"the runs {first} and {run_id} have records of different sentences")
        if asks_all and len(sentences) != batch["counts"]["sentences"]:
            raise ValueError(f"{len(sentences)} records of {run_id}, of {batch['counts']['sentences']} sentences")
    for cost in batch["costs"]:
        numbers = [value for name, value in cost.items() if name != "run_id" and value is not None]
        if cost["run_id"] not in asked or not all(_is_number(value) for value in numbers):
            raise ValueError(f"the costs {cost!r:.200} cannot be")


def _can_be(value: Any, kind: pa.DataType) -> bool:
    """Whether a record can hold the value: a text, a list of texts, a count, a fraction."""
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if pa.types.is_string(kind):
        return isinstance(value, str)
    return _is_number(value) and (type(value) is int if pa.types.is_integer(kind) else value <= 1)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_iou(record: dict[str, Any]) -> bool:
    intersection, union = record["intersection"], record["union"]
    if "unreadable_image" in record["flags"]:
        return intersection == record["iou"] == 0
    return intersection <= union and math.isclose(record["iou"], intersection / union if union else 1)


def to_table(rows: list[list[Any]], schema: pa.Schema, key: tuple[str, ...]) -> pa.Table:
    """Rows as a table. Raises ValueError if two of them have the same `key`: a sentence with two records in one
    run."""
    places = [schema.get_field_index(name) for name in key]
    keys = [tuple(row[place] for place in places) for row in rows]
    if len(set(keys)) != len(keys):
        (run_id, *sentence), _ = Counter(keys).most_common(1)[0]
        name = " of ".join(reversed(sentence))
        raise ValueError(f"The sentence {name} has two records in the run {run_id}: its id is not unique.")
    columns = list(zip(*rows)) if rows else [()] * len(schema)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types)], schema=schema)


@contextmanager
def space_needed(folder: Path) -> Iterator[None]:
    """Say what to do if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"No space left for the results in {folder}. Make room and start the same evaluation again: it goes on "
            "with the batches that are not saved yet",
        ) from error


def _differences(found: Any, wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """`name: there X, now Y` for every value that differs."""
    if not isinstance(found, dict):
        return [f"{SETTINGS_NAME} is not one of an evaluation"]
    texts = []
    for name in sorted({*found, *wanted}):
        there, now = found.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(now, dict):
            texts += _differences(there, now, f"{prefix}{name}.")
        elif there != now:
            texts.append(f"{prefix}{name}: there {there!r}, now {now!r}")
    return texts
