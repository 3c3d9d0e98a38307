"""`accelerate launch -m transformers_litelvlm.calibration --output-dir out`, for launchers of several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from transformers.utils import logging

from transformers_litelvlm.calibration.arguments import DESCRIPTION, CalibrationArguments
from transformers_litelvlm.calibration.report import PAGE_NAME
from transformers_litelvlm.calibration.runner import calibrate
from transformers_litelvlm.evaluation.__main__ import run_launched


PROGRAM = "python -m transformers_litelvlm.calibration"


def calibrate_and_print(args: CalibrationArguments, command: str) -> None:
    """Calibrate in the processes that run, of which the main one prints the report."""
    logging.disable_progress_bar()  # of loading; the calibration has its own
    if calibrate(args, command):
        with open(os.path.join(args.output_dir, PAGE_NAME), encoding="utf-8") as page:
            print(page.read(), end="", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate; see [`run_launched`]."""
    return run_launched(PROGRAM, DESCRIPTION, CalibrationArguments, calibrate_and_print, argv)


if __name__ == "__main__":
    sys.exit(main())
