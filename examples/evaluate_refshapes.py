"""Measures the tiny checkpoint on the test split of RefShapes, at every budget and for every selection rule.

    python examples/evaluate_refshapes.py --output_dir results --num_scenes 20 --protocols single
    torchrun --nproc_per_node 2 examples/evaluate_refshapes.py --output_dir results --bf16

Writes `refshapes.json` and `refshapes.md`. All rules see the same pictures and sentences; vision tower and SAM encoder
run once per picture. Kept tokens stay in raster order at the positions of the unpruned prompt; only "released layout"
puts them in the order and at the positions of the released code. Two protocols: `single`, one sentence per dialogue,
and `dialogue`, all sentences of a picture in one dialogue with one selection for them all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

import transformers_litelvlm
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.refshapes import load_refshapes
from transformers_litelvlm.evaluation.metrics import sentence_ious
from transformers_litelvlm.evaluation.statistics import bootstrap_interval, ciou, giou
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor


KINDS = ("attribute", "superlative", "relation")


@dataclass
class Rule:
    """A way to choose visual tokens.

    Args:
        name: its name in the table.
        method: registered pruning method; `"all"` and `"zeroed"` keep every token, the second replaces them by zeros.
        options: options of the method.
        budget: tokens kept.
        layout: `token_order` and `position_ids`; the method's official choice where absent.
        scores: filled in: per protocol one row `(scene, kind, intersection, union)` for every sentence.
    """

    name: str
    method: str
    options: dict = field(default_factory=dict)
    budget: int | None = None
    layout: dict = field(default_factory=dict)
    scores: dict[str, list] = field(default_factory=dict)


IN_PLACE = {"token_order": "raster", "position_ids": "original"}


def rules(budgets: list[int], random_seeds: int) -> list[Rule]:
    """Every rule at every budget, and the two that keep all tokens."""
    chosen = [Rule("all tokens", "all"), Rule("zeroed tokens", "zeroed")]
    for budget in budgets:
        litelvlm = {"litelvlm": {}} | {f"litelvlm, context share {x}": {"context_share": x} for x in (0.25, 0.5, 0.75)}
        variants = {**litelvlm, "context only": {"context_share": 1.0}, "forward ranking": {"ranking": "forward"}}
        chosen += [Rule(name, "litelvlm", options, budget, IN_PLACE) for name, options in variants.items()]
        chosen += [Rule("random", "random", {"seed": seed}, budget, IN_PLACE) for seed in range(random_seeds)]
        chosen.append(Rule("litelvlm, released layout", "litelvlm", {}, budget))
    return chosen


def visual_features(model: LlavaLiteForReferringSegmentation, rule: Rule, states: TowerStates, inputs: dict):
    """What `get_image_features` gives under a rule, from the shared states of the vision tower."""
    if rule.budget is None:
        projected = model.model.multi_modal_projector(states.features[:, 1:])
        return BaseModelOutputWithPooling(pooler_output=list(projected * (rule.method == "all")))
    model.config.pruning_config = PruningConfig(
        method=rule.method, budget=rule.budget, method_options=rule.options, **rule.layout
    )
    return model.model.select_visual_tokens(
        states, rule.budget, inputs["guidance_input_ids"], inputs["guidance_attention_mask"]
    )


def dialogues(rows: list[dict], protocol: str) -> Iterator[tuple[int, list[dict]]]:
    """Place of the picture in the batch, and the expressions of one dialogue about it."""
    for place, row in enumerate(rows):
        if protocol == "single":
            yield from ((place, [expression]) for expression in row["expressions"])
        else:
            yield place, row["expressions"]


@torch.no_grad()
def score_batch(model, processor: LlavaLiteProcessor, rows: list[dict], protocol: str, chosen: list[Rule]) -> None:
    """Adds the intersections and unions of a batch of pictures to the scores of every rule."""
    asked = list(dialogues(rows, protocol))
    places = torch.tensor([place for place, _ in asked])
    pictures = processor.segmentation_inputs([row["image"] for row in rows], [["x"]] * len(rows))
    inputs = processor.segmentation_inputs(
        [rows[place]["image"] for place, _ in asked],
        [[entry["sentence"] for entry in entries] for _, entries in asked],
    )
    states = model.model.encode_images(pictures["pixel_values"])[places]
    embeddings = model.encode_for_masks(pictures["mask_pixel_values"])[places]
    truths = [torch.from_numpy(np.stack([decode_mask(entry["mask"]) for entry in entries])) for _, entries in asked]
    names = ("input_ids", "attention_mask", "original_sizes", "reshaped_input_sizes")
    for rule in chosen:
        model.config.pruning_config = PruningConfig()
        features = visual_features(model, rule, states, inputs)
        output = model.segment(
            **{name: inputs[name] for name in names},
            mm_encoder_outputs={"image": features},
            mask_image_embeddings=embeddings,
        )
        for (place, entries), masks, truth in zip(asked, output.masks, truths, strict=True):
            overlap, union = (masks & truth).sum((1, 2)).tolist(), (masks | truth).sum((1, 2)).tolist()
            rule.scores.setdefault(protocol, []).extend(
                (rows[place]["image_id"], KINDS.index(entry["kind"]), *numbers)
                for entry, *numbers in zip(entries, overlap, union, strict=True)
            )


def summary(seeds: list[np.ndarray], seed: int) -> dict:
    """gIoU, cIoU (over all seeds) with 95 % intervals from resampled scenes, and gIoU by kind of sentence.

    Args:
        seeds: per seed the `(sentences, 4)` scores; one array for rules without chance.
        seed: of the resampling.

    Returns:
        Numbers between 0 and 1.
    """
    scene, kind, overlap, union = np.moveaxis(np.stack(seeds), 2, 0)  # each (seeds, sentences)
    scene, kind = scene[0], kind[0]
    scores = {"giou": giou(overlap, union, scene), "ciou": ciou(overlap, union, scene)}
    intervals = {name: bootstrap_interval(score, seed=seed) for name, score in scores.items()}
    result = {name: interval.value for name, interval in intervals.items()}
    result |= {"sentences": len(scene), "scenes": len(scores["giou"].images)}
    for name, interval in intervals.items():
        result[f"{name}_interval"] = [round(interval.low, 4), round(interval.high, 4)]
    ious = sentence_ious(overlap, union).mean(0)
    result |= {f"giou_{name}": ious[kind == number].mean() for number, name in enumerate(KINDS)}
    if len(seeds) > 1:
        result["giou_of_seeds"] = [round(value, 4) for value in scores["giou"].value_of_seeds]
    return {name: round(float(value), 4) if isinstance(value, float) else value for name, value in result.items()}


def report(chosen: list[Rule], protocols: list[str], seed: int) -> list[dict]:
    """One entry per protocol, rule and budget; the seeds of the random rule are one entry."""
    groups = {}
    for rule in chosen:
        for protocol in (name for name in protocols if name in rule.scores):
            groups.setdefault((protocol, rule.name, rule.budget), []).append(np.asarray(rule.scores[protocol]))
    return [
        {"protocol": protocol, "rule": name, "budget": budget, **summary(seeds, seed)}
        for (protocol, name, budget), seeds in groups.items()
    ]


def markdown(entries: list[dict]) -> str:
    """The entries as tables, one per protocol."""
    lines = []
    for protocol in dict.fromkeys(entry["protocol"] for entry in entries):
        lines += [
            f"\n### Protocol `{protocol}`\n",
            "| tokens | rule | gIoU | 95 % | cIoU | 95 % | attribute | superlative | relation |",
        ]
        lines.append("|" + "---|" * 9)
        for entry in (entry for entry in entries if entry["protocol"] == protocol):
            intervals = ["{:.3f} to {:.3f}".format(*entry[f"{name}_interval"]) for name in ("giou", "ciou")]
            kinds = " | ".join(f"{entry[f'giou_{kind}']:.3f}" for kind in KINDS)
            lines.append(
                f"| {entry['budget'] or 144} | {entry['rule']} | {entry['giou']:.3f} | {intervals[0]} "
                f"| {entry['ciou']:.3f} | {intervals[1]} | {kinds} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Scores the test split and writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=transformers_litelvlm.DEFAULT_CHECKPOINT)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_scenes", type=int, default=1000)
    parser.add_argument("--num_objects", type=int, nargs=2, default=[3, 5], help="per scene, smallest and largest")
    parser.add_argument("--budgets", type=int, nargs="*", default=[48, 32, 16, 8])
    parser.add_argument("--protocols", nargs="+", default=["single", "dialogue"], choices=("single", "dialogue"))
    parser.add_argument("--random_seeds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=8, help="pictures at a time")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, which halves the time")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    args = parser.parse_args()

    started = time.time()
    model = LlavaLiteForReferringSegmentation.from_pretrained(args.checkpoint).eval()
    processor = LlavaLiteProcessor.from_pretrained(args.checkpoint)
    rows = load_refshapes("test", args.num_scenes, num_objects=tuple(args.num_objects))
    chosen = rules(args.budgets, args.random_seeds)
    # Unless it is told, accelerate does not see the processes of torchrun where there is no accelerator.
    state = PartialState(cpu=not torch.accelerator.is_available())
    with state.split_between_processes(list(range(len(rows)))) as numbers:
        for start in tqdm(range(0, len(numbers), args.batch_size), disable=not state.is_main_process):
            batch = [rows[number] for number in numbers[start : start + args.batch_size]]
            for protocol in args.protocols:
                # What only makes a difference between several sentences and one is asked once.
                asked = [
                    rule
                    for rule in chosen
                    if protocol == "single" or "context_share" not in rule.options or rule.name == "context only"
                ]
                with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                    score_batch(model, processor, batch, protocol, asked)
    for rule in chosen:
        rule.scores = {name: gather_object(rule.scores[name]) for name in args.protocols if name in rule.scores}
    if not state.is_main_process:
        return

    entries = report(chosen, args.protocols, args.seed)
    settings = {
        **vars(args),
        "seconds": round(time.time() - started),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }
    settings |= {"torch": torch.__version__, "transformers": transformers.__version__}
    os.makedirs(args.output_dir, exist_ok=True)
    with open(os.path.join(args.output_dir, "refshapes.json"), "w", encoding="utf-8") as stream:
        json.dump({"settings": settings, "results": entries}, stream, indent=1)
    with open(os.path.join(args.output_dir, "refshapes.md"), "w", encoding="utf-8") as stream:
        stream.write(markdown(entries))


if __name__ == "__main__":
    main()
