"""`litelvlm calibrate`: the presets that suit a model and its data."""

from __future__ import annotations

import argparse

from transformers_litelvlm.calibration.arguments import DESCRIPTION as DESCRIPTION
from transformers_litelvlm.calibration.arguments import CalibrationArguments
from transformers_litelvlm.cli.errors import bad_input
from transformers_litelvlm.cli.launching import add_launched, launch
from transformers_litelvlm.evaluation.arguments import from_namespace


CHECKPOINT = "model"
HELP = "find the presets that suit a model and its data"
EPILOG = """\
examples:
  litelvlm calibrate --output-dir calibration
  litelvlm calibrate --output-dir calibration --model ./refshapes_copy --write
  litelvlm calibrate --output-dir calibration --methods uniform litelvlm:context_share=0.5 fastv --budgets 16 32 48
  litelvlm calibrate --output-dir refcoco --model ./glamm-refseg --dataset refcoco --split val --test-split testA

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes.

Without --write the checkpoint is not changed. Started again with the same options, it continues; --write may
be added then. On several machines, launch it yourself:
  accelerate launch -m transformers_litelvlm.calibration --output-dir calibration ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_launched(parser, CalibrationArguments)


def run(args: argparse.Namespace) -> None:
    """Calibrate and print the report, here or in processes of its own."""
    with bad_input():
        options = from_namespace(args, CalibrationArguments)
        from transformers_litelvlm.calibration.__main__ import work
    launch("transformers_litelvlm.calibration", options, work, args)
