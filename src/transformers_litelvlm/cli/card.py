"""`litelvlm card`: measured results into the model card of a checkpoint."""

from __future__ import annotations

import argparse

from transformers_litelvlm.cli.errors import bad_input
from transformers_litelvlm.cli.models import import_given
from transformers_litelvlm.evaluation.arguments import add_imports


HELP = "write measured results into a model card"
DESCRIPTION = (
    "Write the results of an evaluation into the model card of a checkpoint: presets and runs with"
    " intervals, and machine-readable metadata."
)
EPILOG = """\
examples:
  litelvlm card ./glamm-refseg --results results/results.json --repo-id me/my-model
  litelvlm card ./glamm-refseg --results refcoco/results.json reason_seg/results.json --output card.md

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes.

Only the part between the two marks of the card and `model-index` in its metadata are written, and with --repo-id the
title; without marks, that part goes to the end. If the checkpoint has a trainer_state.json, the card also says how
long it was trained. A checkpoint without a card gets one. Upload it with: hf upload REPO ./glamm-refseg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="folder of the checkpoint")
    parser.add_argument(
        "--results", metavar="FILE", nargs="+", required=True, help="results.json of an evaluation; several data sets"
    )
    parser.add_argument("--output", metavar="FILE", help="where the card goes, an .md file (default: PATH/README.md)")
    parser.add_argument(
        "--any-name", action="store_true", help="accept results that name another folder or repository (a copy)"
    )
    parser.add_argument(
        "--task-id",
        metavar="TASK",
        help="also write .eval_results: id of the task in the eval.yaml of the data set, a benchmark of the Hub",
    )
    parser.add_argument("--repo-id", metavar="ID", help="where you will upload it: the title becomes its name")
    add_imports(parser)


def run(args: argparse.Namespace) -> None:
    """Write, and say what was written."""
    from transformers_litelvlm.hub.updating import update_card

    import_given(args)
    with bad_input():
        done = update_card(args.path, args.results, args.output, args.any_name, args.task_id, args.repo_id)
    print("\n".join(done))
