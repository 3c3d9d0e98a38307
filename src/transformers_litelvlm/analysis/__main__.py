"""`accelerate launch -m transformers_litelvlm.analysis --output-dir results`, for launchers of several processes."""

from __future__ import annotations

import sys
from functools import partial

from transformers_litelvlm.analysis.arguments import DESCRIPTION, AnalysisArguments
from transformers_litelvlm.analysis.report import PAGE_NAME
from transformers_litelvlm.analysis.runner import analyze
from transformers_litelvlm.evaluation.__main__ import and_print, run_launched


PROGRAM = "python -m transformers_litelvlm.analysis"

work = and_print(analyze, PAGE_NAME)
main = partial(run_launched, PROGRAM, DESCRIPTION, AnalysisArguments, work)


if __name__ == "__main__":
    sys.exit(main())
