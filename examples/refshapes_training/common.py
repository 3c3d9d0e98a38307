"""What the stages share: the optimisation loop, checkpoints to resume from, mask losses and scores."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm


IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """`(B, H, W, 3)` uint8 to `(B, 3, H, W)` float32 with CLIP's mean and standard deviation, which the SAM tower
    shares here.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (pixels - mean) / std


def mask_loss(logits: torch.Tensor, targets: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    """Dice plus twice binary cross-entropy of `(masks, H, W)`, mean over the masks, or over those that are `present`
    `(masks,)`.
    """
    logits, targets = logits.float().flatten(1), targets.float().flatten(1)
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(1)
    dice = 1 - (2 * overlap + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    losses = dice + 2 * F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return losses.mean() if present is None else (losses * present).sum() / present.sum().clamp(min=1)


def mask_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each of `(masks, H, W)` logits, resized to the size of the boolean targets."""
    logits = F.interpolate(logits.float()[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    predicted = logits > 0
    union = (predicted | targets).flatten(1).sum(1)
    return (predicted & targets).flatten(1).sum(1) / union.clamp(min=1)


def optimiser(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that leaves vectors (biases, norms) and embeddings without weight decay."""
    parameters = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    decayed = [value for name, value in parameters if value.ndim >= 2 and "embed" not in name]
    rest = [value for name, value in parameters if not (value.ndim >= 2 and "embed" not in name)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1.0)))


def train(
    accelerator: Accelerator,
    module: nn.Module,
    make_batch: Callable[[int], dict],
    folder: str,
    steps: int,
    learning_rate: float,
    warmup: int = 200,
    weight_decay: float = 0.02,
    evaluate: Callable[[], dict] | None = None,
    evaluate_every: int = 500,
    minutes: float | None = None,
    compiled: bool = False,
) -> None:
    """Trains a module whose forward takes a batch and returns a dictionary of scalars, the objective under `"loss"`.

    The state is saved in `folder` at every evaluation; a run that was stopped goes on from there. `log.jsonl` keeps
    the measurements.

    Args:
        accelerator: device and precision.
        module: the objective.
        make_batch: batch of a step; keyed on the step, so that a resumed run sees what the unbroken one would.
        folder: where state and log go.
        steps: number of steps.
        learning_rate: highest learning rate.
        warmup: steps of linear warm-up.
        weight_decay: weight decay of the matrices.
        evaluate: measures on the validation split.
        evaluate_every: steps between evaluations.
        minutes: Wall-clock budget; the schedule is cut to end with it.
        compiled: whether to use `torch.compile`.
    """
    os.makedirs(folder, exist_ok=True)
    optimizer = optimiser(module, learning_rate, weight_decay)
    if compiled:
        module.compile()
    module, optimizer = accelerator.prepare(module, optimizer)
    state_path, first = os.path.join(folder, "state.pt"), 0
    if os.path.exists(state_path):
        state = torch.load(state_path, map_location="cpu", weights_only=True)
        accelerator.unwrap_model(module).load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started, sums, count = time.time(), {}, 0
    progress = tqdm(
        range(first, steps), initial=first, total=steps, disable=not accelerator.is_main_process, mininterval=10
    )
    for step in progress:
        share = step / steps if minutes is None else max(step / steps, (time.time() - started) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm_cosine(int(share * steps) if step > warmup else step, steps, warmup)
        losses = module(make_batch(step))
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        count += 1
        last = step + 1 == steps or share >= 1
        if (step + 1) % evaluate_every == 0 or last:
            entry = {"step": step + 1, "seconds": round(time.time() - started, 1)}
            entry |= {name: round(value / count, 4) for name, value in sums.items()}
            sums, count = {}, 0
            if evaluate is not None:
                module.eval()
                with torch.no_grad(), accelerator.autocast():
                    entry |= evaluate()
                module.train()
            if accelerator.is_main_process:
                _record(accelerator, module, optimizer, folder, step + 1, entry)
                tqdm.write(json.dumps(entry))
        if last:
            break


def _record(accelerator: Accelerator, module: nn.Module, optimizer, folder: str, step: int, entry: dict) -> None:
    state = {
        "module": accelerator.unwrap_model(module).state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, os.path.join(folder, "state.pt.part"))
    os.replace(os.path.join(folder, "state.pt.part"), os.path.join(folder, "state.pt"))
    with open(os.path.join(folder, "log.jsonl"), "a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")
