"""`accelerate launch -m transformers_litelvlm.analysis --output-dir results`, for launchers of several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers_litelvlm.analysis.arguments import DESCRIPTION, AnalysisArguments
from transformers_litelvlm.analysis.report import PAGE_NAME
from transformers_litelvlm.analysis.runner import analyze
from transformers_litelvlm.evaluation.__main__ import and_print, run_launched


PROGRAM = "python -m transformers_litelvlm.analysis"

analyze_and_print = and_print(analyze, PAGE_NAME)


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse, and return the exit code, see [`~evaluation.__main__.run_launched`]."""
    return run_launched(PROGRAM, DESCRIPTION, AnalysisArguments, analyze_and_print, argv)


if __name__ == "__main__":
    sys.exit(main())
