"""Commands that run in several processes of this machine: one for each GPU, or as many as are asked for."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers_litelvlm.cli.errors import HOW_TO_REPORT, BadInputError, bad_input, positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--processes",
        metavar="N",
        type=positive_int,
        help="processes on this machine (default: one per GPU, else one)",
    )


def run_in_processes(args: argparse.Namespace, module: str, options: Any, work: Callable[[Any, str], None]) -> None:
    """Do `work`, here or in processes of its own.

    Args:
        args: of the command line.
        module: what a launcher starts to do the same.
        options: of the work.
        work: gets the options and what was typed.
    """
    from transformers_litelvlm.evaluation.__main__ import CODE_VARIABLE
    from transformers_litelvlm.evaluation.arguments import as_command_line
    from transformers_litelvlm.evaluation.provenance import COMMAND_VARIABLE, typed_command

    typed = typed_command("litelvlm", args.arguments)
    processes = args.processes or _num_devices()
    if processes == 1:
        with bad_input():
            work(options, typed)
        return
    # Not `accelerate launch`: on CPUs without MPI it starts a single process, whatever it is asked for.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, "-m", module, *as_command_line(options)]
    with tempfile.TemporaryDirectory() as folder:
        code_file = Path(folder, "code")  # torchrun itself ends with 1, whatever its processes end with
        environment = {**os.environ, COMMAND_VARIABLE: typed, CODE_VARIABLE: str(code_file)}
        if subprocess.run(command, env=environment).returncode == 0:
            return
        if code_file.exists():
            raise BadInputError("it was not done; its own message is above")
    print(HOW_TO_REPORT, file=sys.stderr)
    sys.exit(1)


def _num_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
