"""
Trains the tiny grounding checkpoint that ships with the package, from nothing, on RefShapes.

    python examples/train_refshapes.py sam --work_dir /tmp/refshapes
    python examples/train_refshapes.py clip --work_dir /tmp/refshapes
    python examples/train_refshapes.py ground --work_dir /tmp/refshapes
    python examples/train_refshapes.py masks --work_dir /tmp/refshapes
    python examples/train_refshapes.py export --work_dir /tmp/refshapes --output_dir refshapes_tiny

The first two stages do not need each other and can run side by side. Every stage goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from refshapes_training import clip_stage, dialogues, ground_stage, sam_stage
from refshapes_training.common import train
from refshapes_training.grounding_model import build_grounding_model
from refshapes_training.scenes import scene_cache
from refshapes_training.vocabulary import clip_tokenizer, language_tokenizer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("sam", "clip", "ground", "masks", "export"))
    parser.add_argument("--work_dir", required=True, help="drawn scenes, states and logs")
    parser.add_argument("--output_dir", help="where `export` writes the checkpoint")
    parser.add_argument("--num_scenes", type=int, default=40000)
    parser.add_argument("--num_validation_scenes", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=None, help="wall-clock budget of the stage")
    parser.add_argument("--learning_rate", type=float, default=None)
    parser.add_argument("--evaluate_every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="use torch.compile where it was measured to help")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU where there is an accelerator")
    return parser.parse_args()


DEFAULTS = {
    "sam": {"batch_size": 32, "steps": 3000, "learning_rate": 1e-3},
    "clip": {"batch_size": 256, "steps": 1200, "learning_rate": 1e-3},
    "ground": {"batch_size": 64, "steps": 3000, "learning_rate": 1e-3},
}


def main() -> None:
    """Runs one stage."""
    args = parse_arguments()
    for name, value in DEFAULTS.get(args.stage, {}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    set_seed(args.seed)
    accelerator = Accelerator(mixed_precision="bf16", cpu=args.cpu)
    folder = os.path.join(args.work_dir, "scenes")
    train_scenes = scene_cache(folder, "train", args.num_scenes, args.seed)
    validation = scene_cache(folder, "validation", args.num_validation_scenes, args.seed)
    STAGES[args.stage](args, accelerator, train_scenes, validation)


def draw(args: argparse.Namespace, step: int, scenes: int) -> tuple[np.ndarray, np.random.Generator]:
    """Scenes of a step, and the source of its further randomness; processes draw differently."""
    rng = np.random.default_rng([args.seed, step, int(os.environ.get("RANK", "0"))])
    return np.sort(rng.choice(scenes, size=args.batch_size, replace=False)), rng


def run_sam(args, accelerator, scenes, validation) -> None:
    """Stage `sam`."""
    device, objective = accelerator.device, sam_stage.SamObjective(sam_stage.build_sam())
    train(
        accelerator,
        objective,
        lambda step: sam_stage.sam_batch(scenes, *draw(args, step, len(scenes)), device),
        os.path.join(args.work_dir, "sam"),
        args.steps,
        args.learning_rate,
        evaluate=lambda: sam_stage.evaluate_sam(objective.sam, validation, device),
        evaluate_every=args.evaluate_every,
        minutes=args.minutes,
    )


def run_clip(args, accelerator, scenes, validation) -> None:
    """Stage `clip`."""
    tokenizer = clip_tokenizer()
    device, objective = accelerator.device, clip_stage.ClipObjective(clip_stage.build_clip(tokenizer))

    def make_batch(step: int) -> dict:
        indices, rng = draw(args, step, len(scenes))
        return clip_stage.clip_batch(scenes, indices, tokenizer, rng, device)

    train(
        accelerator,
        objective,
        make_batch,
        os.path.join(args.work_dir, "clip"),
        args.steps,
        args.learning_rate,
        compiled=args.compile,
        evaluate=lambda: clip_stage.evaluate_clip(objective.clip, validation, tokenizer, device),
        evaluate_every=args.evaluate_every,
        minutes=args.minutes,
    )


def run_ground(args, accelerator, scenes, validation) -> None:
    """Stage `ground`."""
    clip_words, words = clip_tokenizer(), language_tokenizer()
    clip = clip_stage.ClipObjective(clip_stage.build_clip(clip_words))
    sam = sam_stage.SamObjective(sam_stage.build_sam())
    for stage, objective in (("clip", clip), ("sam", sam)):
        objective.load_state_dict(torch.load(os.path.join(args.work_dir, stage, "state.pt"), weights_only=True)["module"])
    model = build_grounding_model(clip.clip, sam.sam, words)
    objective = ground_stage.GroundObjective(model, clip.clip.logit_scale)
    device, writer = accelerator.device, dialogues.DialogueWriter(words)

    def make_batch(step: int) -> dict:
        indices, rng = draw(args, step, len(scenes))
        batch = dialogues.dialogue_batch(scenes, indices, writer, rng, device)
        captions = clip_stage.tokenise_captions(scenes, indices, clip_words, rng, device)
        return batch | {"caption_ids": captions.input_ids, "caption_mask": captions.attention_mask}

    # One batch whose turns do not see one another (a single sentence per dialogue) and one of ordinary dialogues.
    held_out = [
        dialogues.dialogue_batch(validation, np.arange(start, start + 64), writer, np.random.default_rng(0), device, isolated_share=share)
        for start, share in ((0, 1.0), (150, 0.0))
    ]
    train(
        accelerator,
        objective,
        make_batch,
        os.path.join(args.work_dir, "ground"),
        args.steps,
        args.learning_rate,
        evaluate=lambda: ground_stage.evaluate_grounding(objective, held_out),
        evaluate_every=args.evaluate_every,
        minutes=args.minutes,
        compiled=args.compile,
    )


STAGES = {"sam": run_sam, "clip": run_clip, "ground": run_ground}


if __name__ == "__main__":
    main()
