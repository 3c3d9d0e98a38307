"""`accelerate launch -m transformers_litelvlm.calibration --output-dir out`, for launchers of several processes."""

from __future__ import annotations

import sys
from functools import partial

from transformers_litelvlm.calibration.arguments import DESCRIPTION, CalibrationArguments
from transformers_litelvlm.calibration.report import PAGE_NAME
from transformers_litelvlm.calibration.runner import calibrate
from transformers_litelvlm.evaluation.__main__ import and_print, run_launched


PROGRAM = "python -m transformers_litelvlm.calibration"

work = and_print(calibrate, PAGE_NAME)
main = partial(run_launched, PROGRAM, DESCRIPTION, CalibrationArguments, work)


if __name__ == "__main__":
    sys.exit(main())
