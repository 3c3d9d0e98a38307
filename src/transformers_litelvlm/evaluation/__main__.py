"""`accelerate launch -m transformers_litelvlm.evaluation --output-dir results`, for launchers of several processes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import logging

from transformers_litelvlm.evaluation.arguments import (
    DESCRIPTION,
    EvaluationArguments,
    Options,
    add_arguments,
    from_namespace,
)
from transformers_litelvlm.evaluation.provenance import typed_command
from transformers_litelvlm.evaluation.report import TABLE_NAME
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.pruning.registry import provider_at_fault


PROGRAM = "python -m transformers_litelvlm.evaluation"
# A file that exists afterwards if what was asked could not be done, and no fault of ours was in the way.
CODE_VARIABLE = "LITELVLM_CODE_FILE"


def and_print(work: Callable[[Options, str], Any], page: str) -> Callable[[Options, str], None]:
    """`work`, given the options and what was typed, in every process; the main one prints the file `page` of the
    results. On the others, `work` returns nothing, or an empty dict."""

    def work_and_print(args: Options, command: str) -> None:
        logging.disable_progress_bar()  # of loading; the work has its own
        if work(args, command):
            with open(os.path.join(args.output_dir, page), encoding="utf-8") as file:
                print(file.read(), end="", flush=True)

    return work_and_print


def run_launched(
    program: str,
    description: str,
    kind: type[Options],
    work: Callable[[Options, str], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Do what a command line says, in one of the processes of a launcher; `work` is given the options and what was
    typed.

    Returns:
        The exit code: 0 done, 2 bad usage, input or machine. Any other error is raised: a fault of ours, or of a
        pruning method of somebody else, for which Python ends with 1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    add_arguments(parser, kind)
    namespace = parser.parse_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in the table, on a terminal that lacks their letters
    try:
        work(from_namespace(namespace, kind), typed_command(program, words))
    except Exception as error:
        is_explained = isinstance(error, (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError))
        provider = provider_at_fault(error)
        if not is_explained and provider is None:
            raise
        if code_file := os.environ.get(CODE_VARIABLE):
            Path(code_file).touch()
        if not is_explained:
            error.add_note(f"This is a fault of a pruning method that is not part of litelvlm, from {provider}.")
        if not is_explained or os.environ.get("LITELVLM_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    PartialState().destroy_process_group()
    return 0


work = and_print(evaluate, TABLE_NAME)
main = partial(run_launched, PROGRAM, DESCRIPTION, EvaluationArguments, work)


if __name__ == "__main__":
    sys.exit(main())
