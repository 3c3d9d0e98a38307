"""Trains the tiny grounding checkpoint that ships with the package, from nothing, on RefShapes.

    python examples/train_refshapes.py sam --work_dir /tmp/refshapes
    python examples/train_refshapes.py clip --work_dir /tmp/refshapes
    python examples/train_refshapes.py ground --work_dir /tmp/refshapes
    python examples/train_refshapes.py masks --work_dir /tmp/refshapes
    python examples/train_refshapes.py guidance --work_dir /tmp/refshapes
    python examples/train_refshapes.py export --work_dir /tmp/refshapes --output_dir refshapes_tiny

The first two stages do not need each other and can run side by side, and so can `masks` and `guidance`. Every stage
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from refshapes_training import clip_stage, dialogues, ground_stage, mask_stage, sam_stage
from refshapes_training.common import train
from refshapes_training.exporting import export
from refshapes_training.grounding_model import build_grounding_model
from refshapes_training.scenes import SceneCache, scene_cache
from refshapes_training.vocabulary import clip_tokenizer, language_tokenizer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("sam", "clip", "ground", "masks", "guidance", "export"))
    parser.add_argument("--work_dir", required=True, help="drawn scenes, states and logs")
    parser.add_argument("--output_dir", help="where `export` writes the checkpoint")
    parser.add_argument("--num_scenes", type=int, default=40000)
    parser.add_argument("--num_validation_scenes", type=int, default=600)
    parser.add_argument("--num_objects", type=int, nargs=2, default=[4, 7], help="per scene, smallest and largest")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=None, help="wall-clock budget of the stage")
    parser.add_argument("--learning_rate", type=float, default=None)
    parser.add_argument("--evaluate_every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="use torch.compile where it was measured to help")
    parser.add_argument("--freeze_tower", action="store_true", help="stage `ground` without vision tower and CLIP")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU where there is an accelerator")
    return parser.parse_args()


DEFAULTS = {
    "sam": {"batch_size": 32, "steps": 3000, "learning_rate": 1e-3},
    "clip": {"batch_size": 256, "steps": 1200, "learning_rate": 1e-3},
    "ground": {"batch_size": 40, "steps": 6000, "learning_rate": 1e-3},
    "masks": {"batch_size": 32, "steps": 600, "learning_rate": 3e-4},
    "guidance": {"batch_size": 256, "steps": 500, "learning_rate": 5e-4},
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
    objects = tuple(args.num_objects)
    train_scenes = scene_cache(folder, "train", args.num_scenes, args.seed, objects)
    validation = scene_cache(folder, "validation", args.num_validation_scenes, args.seed, objects)
    STAGES[args.stage](args, accelerator, train_scenes, validation)
    accelerator.end_training()  # a process group that is left open may abort its process at the end


def draw(args: argparse.Namespace, step: int, scenes: int) -> tuple[np.ndarray, np.random.Generator]:
    """Scenes of a step, and the source of its further randomness; processes draw differently."""
    rng = np.random.default_rng([args.seed, step, int(os.environ.get("RANK", "0"))])
    return np.sort(rng.choice(scenes, size=args.batch_size, replace=False)), rng


def load_stage(args: argparse.Namespace, stage: str, objective: torch.nn.Module) -> None:
    """Loads what a stage left behind into its objective."""
    state = torch.load(os.path.join(args.work_dir, stage, "state.pt"), map_location="cpu", weights_only=True)
    objective.load_state_dict(state["module"])


def fit(args: argparse.Namespace, accelerator: Accelerator, objective: torch.nn.Module, **kwargs) -> None:
    """Trains with the settings of the command line, in the folder of the stage."""
    kwargs.setdefault("compiled", args.compile)
    train(
        accelerator,
        objective,
        folder=os.path.join(args.work_dir, args.stage),
        steps=args.steps,
        learning_rate=args.learning_rate,
        evaluate_every=args.evaluate_every,
        minutes=args.minutes,
        **kwargs,
    )


def run_sam(args, accelerator, scenes, validation) -> None:
    """Stage `sam`."""
    device, objective = accelerator.device, sam_stage.SamObjective(sam_stage.build_sam())
    fit(
        args,
        accelerator,
        objective,
        make_batch=lambda step: sam_stage.sam_batch(scenes, *draw(args, step, len(scenes)), device),
        evaluate=lambda: sam_stage.evaluate_sam(objective.sam, validation, device),
        compiled=False,  # the decoder gains little
    )


def fit_clip(args, accelerator, objective, words, scenes, validation) -> None:
    """Trains an objective that compares pictures with their sentences."""
    device = accelerator.device

    def make_batch(step: int) -> dict:
        indices, rng = draw(args, step, len(scenes))
        return clip_stage.clip_batch(scenes, indices, words, rng, device)

    held_out = clip_stage.clip_batch(
        validation, np.arange(min(256, len(validation))), words, np.random.default_rng(0), device
    )
    fit(
        args,
        accelerator,
        objective,
        make_batch=make_batch,
        evaluate=lambda: clip_stage.evaluate_clip(objective, held_out),
    )


def run_clip(args, accelerator, scenes, validation) -> None:
    """Stage `clip`."""
    words = clip_tokenizer()
    objective = clip_stage.ClipObjective(clip_stage.build_clip(words))
    fit_clip(args, accelerator, objective, words, scenes, validation)


def grounding_objective(args: argparse.Namespace, stage: str | None = None) -> ground_stage.GroundObjective:
    """The grounding model from the first two stages, with the weights of a later stage where one is named."""
    clip, sam = (
        clip_stage.ClipObjective(clip_stage.build_clip(clip_tokenizer())),
        sam_stage.SamObjective(sam_stage.build_sam()),
    )
    load_stage(args, "clip", clip)
    load_stage(args, "sam", sam)
    model = build_grounding_model(clip.clip, sam.sam, language_tokenizer())
    objective = ground_stage.GroundObjective(model, clip.clip.logit_scale, train_tower=not args.freeze_tower)
    if stage is not None:
        load_stage(args, stage, objective)
        # SAM may have been trained further while the language model learned: its prompt tokens are the same.
        model.mask_model.load_state_dict(sam.sam.state_dict())
    return objective


def held_out_dialogues(validation: SceneCache, writer: dialogues.DialogueWriter, device: torch.device) -> list[dict]:
    """One batch whose turns do not see one another (a single sentence per dialogue) and one of ordinary dialogues."""
    batches = []
    count = min(64, len(validation) // 2)
    for start, share in ((0, 1.0), (count, 0.0)):
        indices, rng = np.arange(start, start + count), np.random.default_rng(0)
        batch = dialogues.dialogue_batch(validation, indices, writer, rng, device, isolated_share=share)
        batches.append(batch | {"masks": mask_stage.mask_targets(validation, indices, batch["target"])})
    return batches


def run_ground(args, accelerator, scenes, validation) -> None:
    """Stage `ground`."""
    objective, clip_words, device = grounding_objective(args), clip_tokenizer(), accelerator.device
    writer = dialogues.DialogueWriter(language_tokenizer())

    def make_batch(step: int) -> dict:
        indices, rng = draw(args, step, len(scenes))
        batch = dialogues.dialogue_batch(scenes, indices, writer, rng, device)
        captions = clip_stage.tokenise_captions(scenes, indices, clip_words, rng, device)
        return batch | {"caption_ids": captions.input_ids, "caption_mask": captions.attention_mask}

    held_out = held_out_dialogues(validation, writer, device)
    evaluate = partial(ground_stage.evaluate_grounding, objective, held_out)
    fit(args, accelerator, objective, make_batch=make_batch, evaluate=evaluate, warmup=100)


def run_masks(args, accelerator, scenes, validation) -> None:
    """Stage `masks`."""
    objective, device = mask_stage.MaskObjective(grounding_objective(args, "ground")), accelerator.device
    writer = dialogues.DialogueWriter(language_tokenizer())

    def make_batch(step: int) -> dict:
        indices, rng = draw(args, step, len(scenes))
        batch = dialogues.dialogue_batch(scenes, indices, writer, rng, device)
        return batch | {"masks": mask_stage.mask_targets(scenes, indices, batch["target"])}

    held_out = held_out_dialogues(validation, writer, device)

    def evaluate() -> dict[str, float]:
        places = ground_stage.evaluate_grounding(objective.ground, held_out)
        return mask_stage.evaluate_masks(objective.ground, held_out) | places

    fit(args, accelerator, objective, make_batch=make_batch, evaluate=evaluate)


def run_guidance(args, accelerator, scenes, validation) -> None:
    """Stage `guidance`."""
    objective = mask_stage.GuidanceObjective(grounding_objective(args, "ground"))
    fit_clip(args, accelerator, objective, clip_tokenizer(), scenes, validation)


def run_export(args, accelerator, scenes, validation) -> None:
    """Stage `export`."""
    masks = mask_stage.MaskObjective(grounding_objective(args))
    guidance = mask_stage.GuidanceObjective(grounding_objective(args))
    load_stage(args, "masks", masks)
    load_stage(args, "guidance", guidance)
    export(masks.ground.model, guidance.parts, clip_tokenizer(), language_tokenizer(), args.output_dir)


STAGES = {
    "sam": run_sam,
    "clip": run_clip,
    "ground": run_ground,
    "masks": run_masks,
    "guidance": run_guidance,
    "export": run_export,
}


if __name__ == "__main__":
    main()
