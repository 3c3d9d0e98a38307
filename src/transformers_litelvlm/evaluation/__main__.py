"""`accelerate launch -m transformers_litelvlm.evaluation --output-dir results`"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from accelerate import PartialState
from transformers.utils import logging

from transformers_litelvlm.evaluation.arguments import add_arguments, from_namespace
from transformers_litelvlm.evaluation.provenance import typed_command
from transformers_litelvlm.evaluation.report import TABLE_NAME
from transformers_litelvlm.evaluation.runner import evaluate


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates, and returns the exit code: 0 done, 1 something failed, 2 bad usage or input."""
    parser = argparse.ArgumentParser(
        prog="python -m transformers_litelvlm.evaluation",
        description="Measure pruning methods on a data set for referring segmentation. Started again with the same "
        "options after an interruption, it goes on where it was.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    namespace = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading; the evaluation has its own
    try:
        args = from_namespace(namespace)
        command = typed_command("python -m transformers_litelvlm.evaluation", sys.argv[1:] if argv is None else argv)
        results = evaluate(args, command)
    except (ValueError, OSError) as error:
        if os.environ.get("LITELVLM_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    if results:
        print(f"results: {os.path.join(args.output_dir, TABLE_NAME)}")
    PartialState().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
