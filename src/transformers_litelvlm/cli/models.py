"""Which model a sub-command uses, and what it prunes: options, and how they are followed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers_litelvlm.cli.errors import BadInputError, bad_input, checked_device, positive_int, ratio


# Of the bundled checkpoint, which was calibrated: there, the published default does worse than random tokens.
BUNDLED_PRESET = "balanced"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a model, and where it runs."""
    parser.add_argument("--model", metavar="PATH", help="checkpoint folder or Hub name (default: the bundled one)")
    parser.add_argument(
        "--guidance-model", metavar="PATH", help="CLIP for a checkpoint without text tower (default: the one it names)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format of the weights (default: auto, as stored)",
    )


def add_mask_model(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a mask model beside a chat model."""
    parser.add_argument(
        "--mask-model",
        metavar="PATH",
        help="SAM or SAM 2, folder or Hub name, for a --model that answers with boxes, such as Qwen3-VL",
    )


def add_pruning(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is pruned."""
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--budget", metavar="N", type=positive_int, help="visual tokens to keep, 1 or more")
    tokens.add_argument("--retention-ratio", metavar="R", type=ratio, help="fraction of them to keep, in (0, 1]")
    parser.add_argument("--preset", metavar="NAME", help="a named setting, see `litelvlm methods`; others change it")
    parser.add_argument("--method", metavar="NAME", help="pruning method, see `litelvlm methods`")
    parser.add_argument(
        "--method-option", metavar="NAME=VALUE", action="append", default=[], help="option of the method; repeatable"
    )


def import_given(args: argparse.Namespace) -> None:
    """Import what `--import` names, see [`~evaluation.arguments.add_imports`]."""
    from transformers_litelvlm.pruning import import_methods

    with bad_input():
        import_methods(args.imports)


def _pruning_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `from_pretrained`; what is absent leaves the checkpoint's own setting alone."""
    from transformers_litelvlm.pruning import build_pruner, get_pruner

    # A method with its own options, and a budget for it, are a setting of their own.
    is_own = args.method is not None and (args.budget is not None or args.retention_ratio is not None)
    keywords = {
        "pruning_budget": args.budget,
        "pruning_retention_ratio": args.retention_ratio,
        "pruning_preset": args.preset or (None if is_own or args.model else BUNDLED_PRESET),
        "pruning_method": args.method,
        "pruning_method_options": dict(_parsed_option(option) for option in args.method_option) or None,
    }
    if args.method is not None:
        with bad_input():
            get_pruner(args.method)
            build_pruner(args.method, **(keywords["pruning_method_options"] or {}))
    return {name: value for name, value in keywords.items() if value is not None}


def _parsed_option(option: str) -> tuple[str, Any]:
    name, equals, value = option.partition("=")
    if not (name and equals):
        raise BadInputError(f"--method-option {option!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):  # also numbers of thousands of digits, and thousands of levels
        return name, value


def load_model(args: argparse.Namespace, mask_model: str | None = None) -> tuple[Any, Any]:
    """The model in evaluation mode on its device, and its processor, by the options of [`add_model`] and
    [`add_pruning`]. Raises BadInputError if there is no such model, or it cannot follow the settings."""
    from transformers_litelvlm import DEFAULT_CHECKPOINT
    from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation

    pruning = _pruning_keywords(args)
    path = args.model or DEFAULT_CHECKPOINT
    if mask_model and args.model is None:
        raise BadInputError("--mask-model needs --model: the bundled checkpoint has a mask decoder of its own")
    if os.path.exists(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise BadInputError(f"--model {path}: there is no config.json in it, so it is no checkpoint folder")
    if args.guidance_model:
        from transformers_litelvlm.utils.hub_names import check_source

        with bad_input("--guidance-model: "):
            check_source(args.guidance_model)
    device = checked_device(args.device)
    with bad_input(f"--model {path}: "), _quiet_loading():
        # The small file first: what is wrong with the settings is known before gigabytes are read.
        config = config_for_segmentation(path, mask_model)
        with bad_input():  # not the fault of the checkpoint
            config.set_pruning(**pruning)
        if args.method not in (None, "none") and not config.pruning_config.is_on:
            raise BadInputError(f"--method {args.method} prunes nothing without --budget or --retention-ratio")
        if args.guidance_model:
            config.guidance_model = args.guidance_model
        model, processor = load_for_segmentation(path, config, args.dtype, mask_model=mask_model)
    return model.to(device), processor


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bars and load reports on the terminal; what matters in them becomes an error."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
