"""`litelvlm evaluate`: methods, budgets and seeds on a data set, with all devices of this machine."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from transformers_litelvlm.cli.errors import BadInputError, bad_input, positive_int
from transformers_litelvlm.evaluation import arguments
from transformers_litelvlm.evaluation.arguments import as_command_line, from_namespace


HELP = "measure pruning methods on a data set"
DESCRIPTION = arguments.DESCRIPTION
EPILOG = """\
examples:
  litelvlm evaluate --output-dir results --max-images 100
  litelvlm evaluate --output-dir results --methods none litelvlm random --budgets 48 32 16
  litelvlm evaluate --output-dir results --model glamm-refseg --dataset refcoco --split val --protocol glamm
  litelvlm evaluate --output-dir results --methods litelvlm litelvlm:context_share=0.5 tome
  litelvlm evaluate --output-dir results --model unipixel-3b --dataset mevis --split valid_u --source /data/mevis

Started again with the same options it goes on where it was. On several machines, launch it yourself:
  accelerate launch -m transformers_litelvlm.evaluation --output-dir results ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    arguments.add_arguments(parser)
    parser.add_argument(
        "--processes",
        metavar="N",
        type=positive_int,
        help="processes on this machine (default: one per GPU, else one)",
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the table, here or in processes of its own."""
    with bad_input():
        options = from_namespace(args)
        from transformers_litelvlm.evaluation.__main__ import evaluate_and_print
    from transformers_litelvlm.evaluation.provenance import COMMAND_VARIABLE, typed_command

    typed = typed_command("litelvlm", args.arguments)
    processes = args.processes or _num_devices()
    if processes == 1:
        with bad_input():
            evaluate_and_print(options, typed)
        return
    # Not `accelerate launch`: on CPUs without MPI it starts a single process, whatever it is asked for.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, "-m", "transformers_litelvlm.evaluation", *as_command_line(options)]
    code = subprocess.run(command, env={**os.environ, COMMAND_VARIABLE: typed}).returncode
    if code:
        raise BadInputError(f"the evaluation ended with code {code}; its own message is above")


def _num_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
