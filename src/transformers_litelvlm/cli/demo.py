"""`litelvlm demo`: a page in the browser."""

from __future__ import annotations

import argparse
import sys

from transformers_litelvlm.cli.errors import BadInputError, bad_input
from transformers_litelvlm.cli.models import add_model, add_pruning, import_given, load_model
from transformers_litelvlm.cli.serve import add_listening, read_limits
from transformers_litelvlm.evaluation.arguments import add_imports
from transformers_litelvlm.utils.extras import needs_extra


CHECKPOINT = "model"
HELP = "compare masks with and without pruning on a page in the browser"
DESCRIPTION = (
    "Start a page in the browser: an image and sentences in; out come the masks with and without pruning, the kept"
    " tokens and the times."
)
EPILOG = """\
examples:
  litelvlm demo
  litelvlm demo --port 9000 --budget 16
  litelvlm demo --model ./glamm-refseg --preset balanced --dtype bfloat16

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes.
The pruning options are what the page starts with. Ctrl+C stops it and deletes the images that were uploaded.
Before others may reach it, read docs/demo.md: there is no password and no encryption.
"""
# Of the options of `litelvlm serve`, those that mean something here.
OPTIONS = ("--cache-mb", "--max-request-mb", "--max-pixels", "--max-sentences")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_pruning(parser)
    add_imports(parser)
    add_listening(parser, 7860, OPTIONS)


def run(args: argparse.Namespace) -> None:
    """Load the model and show the page until a signal comes."""
    import_given(args)
    with needs_extra("demo", "litelvlm demo"):
        import gradio  # noqa: F401
    from transformers_litelvlm.demo.page import build_page, page_options
    from transformers_litelvlm.demo.running import (
        describe_model,
        files_of_gradio,
        make_comparer,
        shown,
        wait_for_signal,
    )
    from transformers_litelvlm.serving.errors import ServiceError
    from transformers_litelvlm.serving.server import bind, in_address

    limits = read_limits(args, OPTIONS)
    # Before gigabytes are read; the page is there when the model is.
    with bad_input(f"--host {args.host} --port {args.port}: "):
        bound = bind(args.host, args.port)
    port = bound.getsockname()[1]
    with files_of_gradio() as folder:
        with bound:
            loaded = load_model(args)
            try:
                comparer = make_comparer(*loaded, args.model, limits)
                page = build_page(comparer, describe_model(comparer), folder)
            except ServiceError as error:
                raise BadInputError(f"the drawn examples are refused with these options: {error}") from error
        host = in_address(args.host)
        with shown(page, page_options(limits), host, port):
            where = f"on {comparer.segmenter.model.device}, at http://{host}:{port}"
            print(f"litelvlm: {comparer.model}, {where}. Ctrl+C stops it.", file=sys.stderr)
            wait_for_signal()
