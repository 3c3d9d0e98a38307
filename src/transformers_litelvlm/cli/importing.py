"""`--import` of the sub-commands that use pruning methods."""

from __future__ import annotations

import argparse

from transformers_litelvlm.cli.errors import bad_input


def import_given(args: argparse.Namespace) -> None:
    """Import what the option names, see [`~evaluation.arguments.add_imports`]."""
    from transformers_litelvlm.pruning import import_methods

    with bad_input():
        import_methods(args.imports)
