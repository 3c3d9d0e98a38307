"""`litelvlm analyze`: is the reversal true for a model and data, and what does the language model itself look at?"""

from __future__ import annotations

import argparse

from transformers_litelvlm.analysis.arguments import DESCRIPTION as DESCRIPTION
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.cli.errors import bad_input
from transformers_litelvlm.cli.launching import add_launched, launch
from transformers_litelvlm.evaluation.arguments import from_namespace


CHECKPOINT = "model"
HELP = "check on a model and data whether the reversed ranking holds"
EPILOG = """\
examples:
  litelvlm analyze --output-dir analysis --max-images 100
  litelvlm analyze --output-dir analysis --model ./glamm-refseg --dataset refcoco --split val --max-images 500
  litelvlm analyze --output-dir analysis --budgets 48 32 16 --leave-one-out 0

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes.

Started again with the same options, it continues. On several machines, launch it yourself:
  accelerate launch -m transformers_litelvlm.analysis --output-dir analysis ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_launched(parser, AnalysisArguments)


def run(args: argparse.Namespace) -> None:
    """Analyse and print the report."""
    with bad_input():
        options = from_namespace(args, AnalysisArguments)
        from transformers_litelvlm.analysis.__main__ import work
    launch("transformers_litelvlm.analysis", options, work, args)
