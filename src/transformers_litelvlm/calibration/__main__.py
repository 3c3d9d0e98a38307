"""`accelerate launch -m transformers_litelvlm.calibration --output-dir out`, for launchers of several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers_litelvlm.calibration.arguments import DESCRIPTION, CalibrationArguments
from transformers_litelvlm.calibration.report import PAGE_NAME
from transformers_litelvlm.calibration.runner import calibrate
from transformers_litelvlm.evaluation.__main__ import and_print, run_launched


PROGRAM = "python -m transformers_litelvlm.calibration"

calibrate_and_print = and_print(calibrate, PAGE_NAME)


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate; see [`run_launched`]."""
    return run_launched(PROGRAM, DESCRIPTION, CalibrationArguments, calibrate_and_print, argv)


if __name__ == "__main__":
    sys.exit(main())
