"""`litelvlm plot`: results of evaluations as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers_litelvlm.cli.errors import bad_input, checked_output


METRICS = ("giou", "ciou", "j_and_f", "j", "f")

HELP = "draw quality against the number of visual tokens"
DESCRIPTION = (
    "Draw the results of evaluations: quality of each method, with 95 % intervals, against the number of visual"
    " tokens."
)
EPILOG = """\
examples:
  litelvlm plot results/results.json --output quality.png
  litelvlm plot results/results.json --metric ciou --output quality.svg
  litelvlm plot refcoco/results.json reason_seg/results.json --output quality.png

Results of the same model and data share a panel, others get their own. `litelvlm evaluate` writes results.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS.json", nargs="+", help="of `litelvlm evaluate`")
    parser.add_argument("--output", metavar="FILE", required=True, help="the picture, .png or .svg")
    parser.add_argument("--metric", choices=METRICS, help="what is drawn (default: giou of images, j_and_f of videos)")


def run(args: argparse.Namespace) -> None:
    """Draw, and say where."""
    output = Path(args.output)
    checked_output("--output", str(output.parent), [output.name])
    with bad_input():
        from transformers_litelvlm.visualization.quality import plot_quality

        panels = plot_quality(args.results, output, args.metric)
    for panel in panels:
        print(f"{panel.title}: {panel.metric} of {len(panel.lines)} methods")
    print(f"picture: {output}")
