"""`accelerate launch -m transformers_litelvlm.evaluation --output-dir results`, for launchers of several processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from accelerate import PartialState
from transformers.utils import logging

from transformers_litelvlm.evaluation.arguments import DESCRIPTION, EvaluationArguments, add_arguments, from_namespace
from transformers_litelvlm.evaluation.provenance import typed_command
from transformers_litelvlm.evaluation.report import TABLE_NAME
from transformers_litelvlm.evaluation.runner import evaluate


PROGRAM = "python -m transformers_litelvlm.evaluation"


def evaluate_and_print(args: EvaluationArguments, command: str) -> None:
    """Evaluate in the processes that run, of which the main one prints the table."""
    logging.disable_progress_bar()  # of loading; the evaluation has its own
    if evaluate(args, command):
        with open(os.path.join(args.output_dir, TABLE_NAME), encoding="utf-8") as table:
            print(table.read(), end="", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, and return the exit code: 0 done, 1 something failed, 2 bad usage or input."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
    add_arguments(parser)
    namespace = parser.parse_args(words)
    try:
        evaluate_and_print(from_namespace(namespace), typed_command(PROGRAM, words))
    except (ValueError, OSError) as error:
        if os.environ.get("LITELVLM_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    PartialState().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
