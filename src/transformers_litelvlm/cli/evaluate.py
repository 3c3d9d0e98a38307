"""`litelvlm evaluate`: methods, budgets and seeds on a data set, with all devices of this machine."""

from __future__ import annotations

import argparse

from transformers_litelvlm.cli.errors import bad_input
from transformers_litelvlm.cli.launching import add_launched, launch
from transformers_litelvlm.evaluation.arguments import DESCRIPTION as DESCRIPTION
from transformers_litelvlm.evaluation.arguments import EvaluationArguments, from_namespace


CHECKPOINT = "model"
HELP = "measure pruning methods on a data set"
EPILOG = """\
examples:
  litelvlm evaluate --output-dir results --max-images 100
  litelvlm evaluate --output-dir results --methods none litelvlm random --budgets 48 32 16
  litelvlm evaluate --output-dir results --model ./glamm-refseg --dataset refcoco --split val --protocol glamm
  litelvlm evaluate --output-dir results --methods litelvlm litelvlm:context_share=0.5 tome
  litelvlm evaluate --output-dir results --model ./unipixel-3b --dataset mevis --split valid_u --source /data/mevis

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes; likewise
./unipixel-3b.

Started again with the same options, it continues. On several machines, launch it yourself:
  accelerate launch -m transformers_litelvlm.evaluation --output-dir results ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_launched(parser, EvaluationArguments)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    with bad_input():
        options = from_namespace(args, EvaluationArguments)
        from transformers_litelvlm.evaluation.__main__ import work
    launch("transformers_litelvlm.evaluation", options, work, args)
