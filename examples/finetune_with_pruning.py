"""Fine-tunes the checkpoint of this package with pruning on: LoRA on RefShapes, 48 of 144 visual tokens.

    python examples/finetune_with_pruning.py finetuned

Measures gIoU on held-out scenes before and after, and writes the adapter and the merged checkpoint into the folder.
Needs peft and `pip install ".[eval]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from refshapes_training.common import mask_loss
from transformers import AutoProcessor, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.evaluation.runs import plan_runs
from transformers_litelvlm.evaluation.statistics import RatioOfSums, bootstrap_interval, compare, giou
from transformers_litelvlm.models.masks.segmentation import MASK_INPUTS, DialogueStates


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", help="new folder for the adapter, the merged checkpoint and the measurements")
    parser.add_argument(
        "--method", default="litelvlm", help="NAME or NAME:KEY=VALUE,... as `litelvlm evaluate` has it"
    )
    parser.add_argument("--budget", type=int, default=48, help="visual tokens kept, of 144")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=32, help="scenes, with one sentence each")
    parser.add_argument("--num_scenes", type=int, default=12800, help="training scenes; seen again if steps need more")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--num_validation_scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Scenes(torch.utils.data.Dataset):
    """Training scenes of RefShapes, drawn when they are asked for, each with one of its sentences and its mask."""

    def __init__(self, num_scenes: int, seed: int) -> None:
        self.num_scenes, self.seed = num_scenes, seed

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = generate_scene("train", index)
        expression = scene.expressions[np.random.default_rng([self.seed, index]).integers(len(scene.expressions))]
        return {"image": scene.image, "sentence": expression.sentence, "mask": scene.mask(expression.target_id)}


class Collator:
    """Dialogues about scenes, with labels for the answers alone, and the masks that are meant."""

    def __init__(self, processor: Any) -> None:
        self.processor, image = processor, np.zeros((144, 144, 3), np.uint8)
        whole, question = (
            processor.segmentation_inputs(image, "star", for_generation=is_open)["attention_mask"].sum()
            for is_open in (False, True)
        )
        self.answer_length = whole - question

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, sentences = [row["image"] for row in rows], [[row["sentence"]] for row in rows]
        inputs = self.processor.segmentation_inputs(images, sentences)
        mask = inputs["attention_mask"]
        is_answer = (mask.cumsum(1) > mask.sum(1, keepdim=True) - self.answer_length) & mask.bool()
        labels = inputs["input_ids"].masked_fill(~is_answer, -100)
        targets = torch.from_numpy(np.stack([row["mask"] for row in rows])).float()
        return {**inputs, "labels": labels, "target_masks": targets}


class WithMaskLoss(torch.nn.Module):
    """Answers and masks in one `forward`: the model's own loss, and Dice and cross-entropy of the decoded masks.

    What several processes compute outside the `forward` of the module that they train has no common gradients.
    """

    accepts_loss_kwargs = False  # a mean over each batch

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, target_masks: torch.Tensor, **inputs: Any) -> dict[str, torch.Tensor]:
        """The loss; what only masks need goes to the mask decoder."""
        for_masks = {name: inputs.pop(name) for name in MASK_INPUTS if name in inputs}
        output = self.model(**inputs, output_hidden_states=[-1])
        # Hidden states have the columns of the prompt that was passed, whatever was pruned.
        read = DialogueStates(output.hidden_states[-1], inputs["input_ids"])
        logits = self.model.decode(read, for_masks).pred_masks[:, 0]
        targets = F.interpolate(target_masks[:, None], logits.shape[-2:], mode="area")[:, 0]
        return {"loss": output.loss + mask_loss(logits, targets)}


def add_adapters(model: torch.nn.Module) -> Any:
    """LoRA in all linear maps of the language model's layers; the projection that reads [SEG] learns in full."""
    config = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=r".*language_model\.layers.*_proj",
        modules_to_save=["text_hidden_fcs"],
    )
    return get_peft_model(model, config)


def measure(args: argparse.Namespace, checkpoint: str | Path, name: str) -> dict[str, RatioOfSums]:
    """gIoU on the first validation scenes, unpruned and with the method, as `litelvlm evaluate` measures it.

    Of several processes, the main one has it.
    """
    folder = Path(args.output_dir, name)
    results = evaluate(
        EvaluationArguments(
            output_dir=str(folder),
            model=str(checkpoint),
            split="validation",
            methods=["none", args.method],
            budgets=[args.budget],
            seeds=[args.seed],
            max_images=args.num_validation_scenes,
        )
    )
    if not results:
        return {}
    records = pq.read_table(folder / "records.parquet").to_pandas().groupby("run_id")
    return {run: giou(of.intersection, of.union, of.image_id) for run, of in records}


def report(before: dict[str, RatioOfSums], after: dict[str, RatioOfSums]) -> None:
    """Prints gIoU with bootstrap intervals over scenes, and the paired differences."""
    for run in before:
        print(f"{run}: gIoU {bootstrap_interval(before[run])} before, {bootstrap_interval(after[run])} after")
        change = compare(after[run], before[run])
        print(f"{run}: difference {change.difference}, p = {change.p_value:.4f}")


def main() -> None:
    """Measures, trains, measures again."""
    args = parse_arguments()
    set_seed(args.seed)
    before = measure(args, DEFAULT_CHECKPOINT, "before")
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT)
    options = {"methods": [args.method], "budgets": [args.budget], "seeds": [args.seed]}
    run = plan_runs(EvaluationArguments(args.output_dir, **options))[0]
    model.config.pruning_config = run.pruning(model.config.pruning_config)
    model = add_adapters(model)
    model.print_trainable_parameters()
    trainer = Trainer(
        WithMaskLoss(model),
        TrainingArguments(
            str(Path(args.output_dir, "trainer")),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(50, args.steps // 4),
            logging_steps=max(1, min(50, args.steps // 4)),
            remove_unused_columns=False,  # columns of the data set are not arguments of `forward`
            save_strategy="no",
            report_to="none",
            seed=args.seed,
            use_cpu=not torch.accelerator.is_available(),  # else it does not see the other processes of torchrun
        ),
        data_collator=Collator(processor),
        train_dataset=Scenes(args.num_scenes, args.seed),
    )
    trainer.train()
    trainer.save_state()  # the losses on the way
    merged = Path(args.output_dir, "merged")
    if trainer.is_world_process_zero():
        model.save_pretrained(Path(args.output_dir, "adapter"))
        model.merge_and_unload().save_pretrained(merged)
        trainer.state.save_to_json(str(merged / TRAINER_STATE_NAME))  # `litelvlm card` says what is in there
        processor.save_pretrained(merged)
    trainer.accelerator.wait_for_everyone()
    report(before, measure(args, merged, "after"))
    trainer.accelerator.end_training()  # a process group that is left open may abort its process at the end


if __name__ == "__main__":
    main()
