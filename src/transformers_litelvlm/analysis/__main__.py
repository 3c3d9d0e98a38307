"""`accelerate launch -m transformers_litelvlm.analysis --output-dir results`, for launchers of several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from transformers.utils import logging

from transformers_litelvlm.analysis.arguments import DESCRIPTION, AnalysisArguments
from transformers_litelvlm.analysis.report import PAGE_NAME
from transformers_litelvlm.analysis.runner import analyze
from transformers_litelvlm.evaluation.__main__ import run_launched


PROGRAM = "python -m transformers_litelvlm.analysis"


def analyze_and_print(args: AnalysisArguments, command: str) -> None:
    """Analyse in the processes that run, of which the main one prints the report."""
    logging.disable_progress_bar()  # of loading; the analysis has its own
    if analyze(args, command):
        with open(os.path.join(args.output_dir, PAGE_NAME), encoding="utf-8") as page:
            print(page.read(), end="", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse, and return the exit code, see [`~evaluation.__main__.run_launched`]."""
    return run_launched(PROGRAM, DESCRIPTION, AnalysisArguments, analyze_and_print, argv)


if __name__ == "__main__":
    sys.exit(main())
