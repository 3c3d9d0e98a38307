"""Small evaluations of the embedded checkpoint, and what must not change between two of them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import warm_python
from transformers_litelvlm.evaluation.arguments import EvaluationArguments, as_command_line


METHODS = ["none", "litelvlm", "random"]


def options(folder: Path, **changes: Any) -> EvaluationArguments:
    """Six scenes, five runs."""
    defaults = {"max_images": 6, "batch_size": 2, "methods": METHODS, "budgets": [16], "seeds": [0, 1, 2]}
    return EvaluationArguments(output_dir=str(folder), **{**defaults, **changes})


def records(folder: Path) -> pa.Table:
    return pq.read_table(folder / "records.parquet")


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def scores(folder: Path) -> Any:
    """Everything of `results.json` that follows from the records."""
    content = results(folder)
    kept = ("run_id", "metrics", "intervals", "retention", "num_kept_mean")
    runs = [{name: run.get(name) for name in kept} for part in ("runs", "groups") for run in content[part]]
    return runs, content["comparisons"], content["dataset"], content["skipped"]


def assert_same(folder: Path, reference: Path) -> None:
    assert records(folder).equals(records(reference))
    assert scores(folder) == scores(reference)


def evaluate_in_processes(args: EvaluationArguments, processes: int) -> str:
    """An evaluation in processes that some launcher has started; what the first one prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    each = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    runs = warm_python.run(["-m", "transformers_litelvlm.evaluation", *as_command_line(args)], *each)
    for run in runs:
        assert run.returncode == 0, run.stderr
    assert not any(run.stdout for run in runs[1:])
    return runs[0].stdout
