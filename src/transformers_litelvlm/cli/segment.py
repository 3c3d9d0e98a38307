"""`litelvlm segment`: a picture and sentences in, masks out."""

from __future__ import annotations

import argparse
import mimetypes
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_litelvlm.cli.errors import BadInputError, bad_input, checked_output, positive_int
from transformers_litelvlm.cli.methods import sizes_of
from transformers_litelvlm.cli.models import add_mask_model, add_model, add_pruning, import_given, load_model
from transformers_litelvlm.evaluation.arguments import add_imports
from transformers_litelvlm.utils.files import to_json, write_atomically
from transformers_litelvlm.utils.messages import quoted


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHECKPOINT = "model"
HELP = "write the mask of what each sentence refers to"
DESCRIPTION = (
    "Write one mask per sentence (PNG, 0 or 255, at the size of the image), an overlay of all masks,"
    " and a picture of the visual tokens that were kept."
)
EPILOG = """\
examples:
  litelvlm segment scene.png "the red circle left of the blue square"
  litelvlm segment scene.png "the red circle" "the star" --budget 48 --output results
  litelvlm segment scene.png "the star" --preset fast --compare
  litelvlm segment scene.png "the star" --preset context --budget 48
  litelvlm segment scene.png "the star" --method random --method-option seed=3 --json | jq .masks
  litelvlm segment photo.jpg "the cup" --model Qwen/Qwen3-VL-4B-Instruct --mask-model facebook/sam2.1-hiera-large

scene.png stands for an image of yours.
Without --budget, --retention-ratio and --preset the setting in the checkpoint's config.json holds.
Without --model the bundled checkpoint is used, with its preset "balanced", which other options change.
It knows drawn shapes, not photos. --json has each mask as COCO RLE, too.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image file, or its http(s) address")
    parser.add_argument("sentences", metavar="SENTENCE", nargs="+", help='what to find, e.g. "the red circle"')
    add_model(parser)
    add_mask_model(parser)
    add_pruning(parser)
    add_imports(parser)
    parser.add_argument(
        "--output",
        "--output-dir",  # as of the other commands
        metavar="DIR",
        default="litelvlm_output",
        help="folder for the results, made if missing; removes the files of the last run there (default: %(default)s)",
    )
    parser.add_argument("--compare", action="store_true", help="also time the model with and without pruning")
    parser.add_argument(
        "--pairs", metavar="N", type=positive_int, default=10, help="pairs of timed runs of --compare (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> None:
    """Segment and print. What is cheap to check is checked before the model is loaded."""
    sentences = [_checked_sentence(sentence) for sentence in args.sentences]
    names = [*map(mask_file_name, range(len(sentences)), sentences), "overlay.png", "kept_tokens.png"]
    folder = Path(checked_output("--output", args.output, names))
    replaced = [folder / name for name in names if (folder / name).exists()]
    if os.path.isfile(args.image) and any(path.samefile(args.image) for path in replaced):
        raise BadInputError(f"{args.image} would be replaced by a file of the results: choose another --output")
    import_given(args)
    if (mimetypes.guess_type(args.image)[0] or "").startswith("video/"):
        raise BadInputError(
            f'{args.image} is a video, and this command takes images; "Masks of a video" in docs/recipes.md has the '
            "lines of Python"
        )
    with bad_input():
        from transformers_litelvlm.utils.image_io import load_rgb_image

        image = load_rgb_image(args.image)
    model, processor = load_model(args, args.mask_model)
    report = _segment(args, model, processor, image, sentences, folder)
    if args.json:
        print(to_json(report, indent=2))
    else:
        _print_report(report)


def mask_file_name(index: int, sentence: str) -> str:
    """A file name for the mask of a sentence: `mask_0_the-red-circle.png`."""
    encoding = sys.getfilesystemencoding()  # of which some do not have all letters
    slug = re.sub(r"[\W_]+", "-", sentence.lower().encode(encoding, "ignore").decode(encoding))[:48].strip("-")
    return f"mask_{index}_{slug}.png" if slug else f"mask_{index}.png"


def _checked_sentence(sentence: str) -> str:
    sentence = " ".join(sentence.split())
    if not sentence:
        raise BadInputError('a sentence is empty: say what to find, e.g. "the red circle"')
    if os.path.isfile(sentence):
        raise BadInputError(f"{sentence} is a file, not a sentence: give one image, then sentences about it")
    return sentence


def _segment(
    args: argparse.Namespace, model: Any, processor: Any, image: Image.Image, sentences: list[str], folder: Path
) -> dict[str, Any]:
    """Run the model, write all files, and return what --json prints."""
    import torch
    from PIL import Image

    from transformers_litelvlm.models.devices import to_model
    from transformers_litelvlm.visualization import draw_masks, draw_selections, region_of

    with bad_input():
        inputs = processor.segmentation_inputs(images=[image], expressions=[sentences], return_tensors="pt")
    inputs = to_model(inputs, model)
    tiles, rows, columns = processor.visual_token_grids(inputs)[0]
    total = tiles * rows * columns
    grid, places = processor.grid_on_picture(inputs, image.size) or ((rows, columns), None)
    region = region_of(processor, image.size, grid)
    _check_budget(args, model.config, total)
    with torch.inference_mode():
        with bad_input():  # pixels or weights that are not finite
            output = model.segment(**inputs).require_finite().warn_if_empty()
        comparison = _compare(model, inputs, output, args.pairs) if args.compare else None
    masks = output.masks[0].cpu().numpy()
    scores = [float(score) for score in output.scores[0]]
    # One row for each dialogue: usually there is one about all sentences.
    retained = [list(range(total))]
    if output.retained_indices is not None:
        retained = [row.tolist() for row in output.retained_indices]
    # The logits take four times the memory of the masks, and drawing takes more.
    output = replace(output, mask_logits=None)
    answers = [answer.as_json() for answer in output.answers[0]] if args.mask_model else [{}] * len(sentences)
    pruning, is_pruned = model.config.pruning_config, output.retained_indices is not None
    names = [mask_file_name(index, sentence) for index, sentence in enumerate(sentences)]
    pictures = {name: Image.fromarray(mask.astype("uint8") * 255) for name, mask in zip(names, masks, strict=True)}
    pictures["overlay.png"] = draw_masks(image, masks, sentences, scores)
    drawn = draw_selections(image, output, pruning, sentences, grid, region, places)
    one = len(drawn) == 1  # else a dialogue, and so a selection, for each sentence
    kept_pictures = {f"kept_tokens{'' if one else f'_{row}'}.png": picture for row, picture in enumerate(drawn)}
    with write_atomically(folder, one_run=True) as staging:
        for name, drawing in {**pictures, **kept_pictures}.items():
            drawing.save(staging / name)
    return {
        "image": str(args.image),
        "width": image.width,
        "height": image.height,
        "model": args.model or "bundled",
        "mask_model": args.mask_model,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        **{name: getattr(pruning, name) if is_pruned else None for name in ("method", "method_options", "then")},
        "why_unpruned": None if is_pruned else _why_unpruned(pruning, total),
        "num_visual_tokens": total,
        "num_kept_tokens": len(retained[0]),
        "token_grid": [tiles * rows, columns],
        "seen_region": _inside(region, image.size),
        "retained_indices": retained,
        "masks": [
            {**_describe_mask(sentence, score, mask, folder / name), **answer}
            for sentence, score, mask, name, answer in zip(sentences, scores, masks, names, answers, strict=True)
        ],
        "overlay": str(folder / "overlay.png"),
        "kept_tokens": [str(folder / name) for name in kept_pictures],
        "comparison": comparison,
    }


def _inside(region: tuple[float, float, float, float], size: tuple[int, int]) -> list[int]:
    """Left, top, right and bottom of a region in whole pixels of the picture."""
    return [min(max(round(edge), 0), end) for edge, end in zip(region, size * 2, strict=True)]


def _check_budget(args: argparse.Namespace, config: Any, total: int) -> None:
    """Refuse a budget that the method cannot reach, and a comparison of the unpruned model with itself."""
    budget = config.pruning_config.resolve(total)
    if args.compare and budget is None:
        raise BadInputError(f"--compare needs pruning: give --budget (below {total}), --retention-ratio or --preset")
    if budget is not None:
        with bad_input():
            sizes = {**sizes_of(config), "num_tokens": total}
            config.pruning_config.build_pruner().tokens_per_layer(budget=budget, **sizes)


def _describe_mask(sentence: str, score: float, mask: np.ndarray, path: Path) -> dict[str, Any]:
    from transformers_litelvlm.data.masks import encode_mask

    area, share = int(mask.sum()), float(mask.mean())
    about = {"sentence": sentence, "score": score, "area": area, "area_fraction": share}
    return {**about, "rle": encode_mask(mask), "file": str(path)}


def _why_unpruned(pruning: Any, total: int) -> str:
    if pruning.is_on:
        return f"the budget is not below the {total} visual tokens"
    return "the method is none" if pruning.method == "none" else "--budget or --retention-ratio says how many to keep"


def _compare(model: Any, inputs: Any, output: Any, pairs: int) -> dict[str, Any]:
    """Times `model.segment` with and without pruning (the same weights and inputs), and compares the masks."""
    import torch

    from transformers_litelvlm.benchmark.timing import time_pairs

    pruned = model.config.pruning_config
    unpruned = pruned.replace(budget=None, retention_ratio=None)

    def segment_with(pruning: Any) -> Any:
        return model.segment(**inputs, pruning_config=pruning)

    full = segment_with(unpruned)
    times = time_pairs(lambda: segment_with(unpruned), lambda: segment_with(pruned), pairs)
    overlap = (output.masks[0] & full.masks[0]).flatten(1).sum(-1)
    union = (output.masks[0] | full.masks[0]).flatten(1).sum(-1)
    return {
        "pairs": pairs,
        "median_ms_unpruned": times.medians[0] * 1000,
        "median_ms_pruned": times.medians[1] * 1000,
        "speedup": times.ratio,
        "speedup_interval_95": list(times.ratio_interval()),
        "threads": torch.get_num_threads(),
        # Two empty masks agree.
        "mask_iou_with_unpruned": [float(o / u) if u else 1.0 for o, u in zip(overlap, union, strict=True)],
    }


def _why_empty(mask: dict[str, Any]) -> str:
    if mask.get("says_none"):
        return "the model says that there is none"
    return "nothing found" if mask.get("answer") is None else f"no box in the answer {quoted(mask['answer'])}"


def _print_report(report: dict[str, Any]) -> None:
    comparison = report["comparison"]
    for index, mask in enumerate(report["masks"]):
        print(mask["sentence"])
        agreement = ""
        if comparison:
            agreement = f", IoU with the unpruned mask {comparison['mask_iou_with_unpruned'][index]:.2f}"
        if mask["area"]:
            area = f"{mask['area']} pixels ({mask['area_fraction']:.1%})"
            print(f"  {area}, score {mask['score']:.2f} (mean mask probability, not correctness){agreement}")
        else:
            print(f"  {_why_empty(mask)}: the mask is empty{agreement}")
        if mask.get("boxes"):
            print(f"  boxes (left, top, right, bottom): {', '.join(map(str, mask['boxes']))}")
        print(f"  {mask['file']}")
    left, top, right, bottom = report["seen_region"]
    is_cropped = [left, top, right, bottom] != [0, 0, report["width"], report["height"]]
    if is_cropped and not all(mask["area"] for mask in report["masks"]):
        print(
            f"this model sees only a part of the image: x from {left} to {right} and y from {top} to {bottom}, of "
            f"{report['width']} x {report['height']} pixels. If what you look for is outside, crop the image to it."
        )
    kept, total = report["num_kept_tokens"], report["num_visual_tokens"]
    how = f"nothing was pruned: {report['why_unpruned']}"
    if report["method"]:
        options = {**report["method_options"], **({"then": report["then"]} if report["then"] else {})}
        how = ", ".join([f"method {report['method']}", *(f"{k}={v}" for k, v in options.items())])
    print(f"visual tokens kept: {kept} of {total} ({kept / total:.0%}), {how}")
    print(f"overlay: {report['overlay']}")
    for file in report["kept_tokens"]:
        print(f"kept tokens: {file}")
    if comparison:
        low, high = comparison["speedup_interval_95"]
        print(
            f"time of model.segment, median of {comparison['pairs']} paired runs on {report['device']}:"
            f" unpruned {comparison['median_ms_unpruned']:.1f} ms, pruned {comparison['median_ms_pruned']:.1f} ms,"
            f" speed-up {comparison['speedup']:.2f}x (95 % interval {low:.2f} to {high:.2f})"
            f"{'; these runs do not tell which is faster' if low <= 1 <= high else ''}"
        )
