"""`litelvlm convert`: a published checkpoint in, a self-contained checkpoint of ours out."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

from transformers_litelvlm.cli.errors import bad_input, checked_output, one_line


FAMILIES = ("glamm", "lisa", "llava", "sa2va", "unipixel")  # those of conversion/families.py, which imports torch

CHECKPOINT = "source"
HELP = "turn a published checkpoint into one that loads here"
DESCRIPTION = (
    "Turn a published checkpoint into a self-contained safetensors checkpoint: model, guidance, processor, tokenizer."
)
EPILOG = """\
examples:
  litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg
  litelvlm convert lisa xinlai/LISA-7B-v1 LISA-7B-lite --dtype bfloat16
  litelvlm convert sa2va ByteDance/Sa2VA-Qwen3-VL-4B Sa2VA-4B-lite --dtype bfloat16
  litelvlm convert unipixel PolyU-ChenLab/UniPixel-3B UniPixel-3B-lite
  litelvlm convert llava ./llava-1.5-7b-hf ./llava-lite --clip ./clip-vit-large-patch14-336

SOURCE and --clip are folders, or ids on the Hub. Weights are .safetensors or .bin; code in them is never run.
TARGET appears when everything is in it, or not at all. Memory: one file of the source, and a little.
TARGET/conversion_report.json says where each tensor is, or why it was dropped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", metavar="FAMILY", choices=FAMILIES, help="one of: %(choices)s")
    parser.add_argument("source", metavar="SOURCE", help="folder or Hub id of the checkpoint")
    parser.add_argument("target", metavar="TARGET", help="folder to make; must not exist, or be empty")
    parser.add_argument(
        "--clip",
        metavar="PATH_OR_ID",
        help="the CLIP that the model was trained with (default: the one it names); for unipixel and the Qwen variants"
        " of sa2va a CLIP that guides pruning (default: none)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="number format of the written weights (default: auto, each as in the source)",
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=_size,
        default="5GB",
        help="largest size of a written file, such as 500MB (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and say what came out and how to load it."""
    from transformers_litelvlm.conversion.convert import convert_checkpoint
    from transformers_litelvlm.conversion.errors import ConversionError
    from transformers_litelvlm.conversion.families import RECIPES
    from transformers_litelvlm.conversion.source import CheckpointSource
    from transformers_litelvlm.conversion.staging import check_target

    with bad_input():
        # Before anything is fetched.
        check_target(args.target)
        checked_output("TARGET", args.target)
        source = CheckpointSource(args.source)
        try:
            conversion = RECIPES[args.family](source, args.clip)
        except (ConversionError, OSError):
            raise
        except Exception as error:  # what stands in files of strangers makes libraries raise all kinds
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ConversionError(f"{source}, or its CLIP, cannot be read as {args.family}: {reason}") from error
        report = convert_checkpoint(conversion, args.target, dtype=args.dtype, max_shard_size=args.max_shard_size)
    print(report.summary())
    print(_how_to_load(args.target))


def _how_to_load(target: str) -> str:
    config = json.loads((Path(target) / "config.json").read_text(encoding="utf-8"))
    model_class, text = config["architectures"][0], json.dumps(target, ensure_ascii=False)
    lines = [
        "Load it:",
        f"  from transformers_litelvlm import {model_class}",
        f'  model = {model_class}.from_pretrained({text}, dtype="auto", pruning_preset="balanced")',
    ]
    if model_class.endswith("ForReferringSegmentation"):
        lines += ["or", f'  litelvlm segment PICTURE "SENTENCE" --model {shlex.quote(target)} --preset balanced']
    return "\n".join(lines)


def _size(text: str) -> str:
    """Type of an argparse argument: 5GB, 500 MB."""
    if not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)? ?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"must be a size such as 5GB or 500MB, got {text!r}")
    return text
